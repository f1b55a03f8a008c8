"""Endpoints: which there are on this machine, whether they answer, and requests to them."""

import collections
import copy
import socket

import urllib3
from botocore.exceptions import ClientError
from local_mode.docker import LABEL, docker
from local_mode.sdk import get_docker_host
from local_mode.versions import local_session

Endpoint = collections.namedtuple('Endpoint', 'container session port config')


def find(name):
    """Return the Endpoint of this name, whichever process deployed it, or None."""
    columns = ' '.join(f'{{{{.Label "{LABEL}{label}"}}}}' for label in ('', '.port', '.config'))
    found = docker('ps', f'--filter=label={LABEL}.endpoint={name}', '--format', '{{.Names}} ' + columns)
    return Endpoint(*found.splitlines()[0].split()) if found else None


def error(operation, code, message):
    return ClientError({'Error': {'Code': code, 'Message': message}}, operation)


def silence(name, port):
    return f'Nothing answers on port {port}: has the endpoint {name} stopped?'


class RuntimeClient(local_session.LocalSagemakerRuntimeClient):
    """Requests to endpoints of this machine, with errors raised as on AWS."""

    timeout = 60  # seconds, as on AWS; the SDK would wait for ever

    def __init__(self, session):
        super().__init__(session.config)
        self.session = session
        self.http = urllib3.PoolManager(timeout=self.timeout)

    def invoke_endpoint(self, Body, EndpointName, *args, **kwargs):
        """Send a request; ClientError ValidationError for an unknown name, ModelError for a 4xx, a 5xx or
        no answer in time.
        """
        there = copy.copy(self)  # requests may go to several endpoints at a time
        there.serving_port = port = self.port(EndpointName)
        try:
            response = super(RuntimeClient, there).invoke_endpoint(Body, EndpointName, *args, **kwargs)
        except urllib3.exceptions.ReadTimeoutError:
            raise error(
                'InvokeEndpoint', 'ModelError', f'The container did not answer within {self.timeout} s.'
            ) from None
        except urllib3.exceptions.HTTPError as e:
            raise ConnectionError(f'{silence(EndpointName, port)} ({e})') from None
        body = response['Body']
        if body.status >= 400:
            text = body.read().decode('utf-8', 'replace').strip()
            raise error(
                'InvokeEndpoint', 'ModelError', f'Received error {body.status} from the container: {text}'
            )
        return response

    def port(self, name):
        """Return the port on which the endpoint answers; ClientError where there is none of this name."""
        if not name:  # the SDK's batch transform asks so
            return self.session.serving_port
        client = self.session.sagemaker_client
        if not (endpoint := client.running(name)):
            known = client._endpoints.get(name)
            try:
                endpoint = find(name)
            except RuntimeError:  # Docker does not answer
                if not known:
                    raise
            if known and not endpoint:  # at its port another one may answer
                raise ConnectionError(silence(name, known.port))
        if endpoint is None:
            message = f'Endpoint {name} of account {self.session.account_id()} not found.'
            raise error('InvokeEndpoint', 'ValidationError', message)
        return int(endpoint.port)


def check_serving_port(session):
    """Raise RuntimeError if another program answers where the endpoint is to answer."""
    port = session.serving_port
    with socket.socket() as s:
        if s.connect_ex((get_docker_host(), port)):
            return
    columns = f'{{{{.Names}}}} {{{{.Label "{LABEL}"}}}}'
    taken = docker('ps', f'--filter=publish={port}', f'--filter=label={LABEL}', '--format', columns).split()
    if not taken:
        who, remedy = 'another program', 'Stop it'
    elif taken[1] == session.name:
        who = 'an earlier endpoint of this notebook'
        remedy = 'Delete that one with predictor.delete_endpoint()'
    else:
        who = f'an endpoint of another notebook, container {taken[0]}'
        remedy = f'If that notebook is gone, remove it with `docker rm -f {taken[0]}`'
    raise RuntimeError(
        f'Port {port} is taken by {who}; its answers would pass for those of your new model. '
        f'{remedy}, or use another port: open_session(serving_port={port + 1}).'
    )
