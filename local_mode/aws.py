"""This module is the stand-in for AWS: it serves moto's S3, STS and IAM on loopback, to its own session only."""

import contextlib
import datetime
import hmac
import io
import logging
import os
import pathlib
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qsl

import boto3
import botocore.session
from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from local_mode.versions import UNCONFIGURED
from moto.moto_server import werkzeug_app as moto
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wrappers import Response

REGION = 'us-east-1'
ROLE = 'SageMakerRole'
SERVICES: Any = 's3', 'sts', 'iam'  # moto's Literal
# As AWS's clients read it.
REFUSAL = """<ErrorResponse><Error><Code>AccessDenied</Code><Message>The stand-in for AWS answers its own session's
signed requests to S3, STS and IAM only.</Message></Error></ErrorResponse>"""
BODY = 2**20  # bytes: the largest request of STS or IAM


class RedirectedSession(boto3.Session):
    """A boto3 session whose clients all talk to one endpoint.

    The SageMaker SDK names public endpoints explicitly in places (STS), so an AWS_ENDPOINT_URL
    would not be enough; and the user's AWS configuration stays untouched.
    """

    def __init__(self, endpoint_url: str, key: str, secret: str, token: str | None = None) -> None:
        super().__init__(key, secret, token, REGION, botocore.session.Session(session_vars=UNCONFIGURED))
        self.endpoint_url = endpoint_url

    def client(self, service_name: str, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        # No proxy leads to loopback. Without s3v4 presigned URLs would have signatures of version 2.
        own = Config(proxies={}, signature_version='s3v4') if service_name == 's3' else Config(proxies={})
        kwargs['config'] = own.merge(kwargs.get('config') or Config())
        return super().client(service_name, *args, **{**kwargs, 'endpoint_url': self.endpoint_url})


class Gate:
    """A WSGI application that passes a session's own requests to moto, and answers 403 to all others.

    A request is the session's own if its signature, AWS's version 4, is made with the session's secret, for S3, STS or
    IAM at this address; so a presigned URL opens only what it names. Sessions of one process share moto's state.
    """

    def __init__(self, secret: str) -> None:
        self.credentials, self.host = Credentials('', secret), ''
        # Not moto's DomainDispatcherApplication, which has all services, and guesses which one a request wants.
        self.apps: dict[str, Any] = {service: moto.create_backend_app(service) for service in SERVICES}

    def __call__(self, environ: dict[str, Any], start_response: Callable) -> Iterable[bytes]:
        def start(status: str, headers: list, *more: Any) -> Any:  # so that no page can read an answer
            return start_response(status, [h for h in headers if not h[0].lower().startswith('access-control')], *more)

        try:
            app = self.apps[self.signed_for(environ)]
        except Exception:  # anything is wrong with a stranger's request
            app = Response(REFUSAL, 403, content_type='text/xml')
        return app(environ, start)

    def signed_for(self, environ: dict[str, Any]) -> str:
        """Return the service for which a request is signed; some exception if it is not signed with our secret."""
        uri, query = environ['RAW_URI'], dict(parse_qsl(environ['QUERY_STRING']))
        if not uri.startswith('/') or environ['HTTP_HOST'] != self.host:
            raise PermissionError
        if presigned := 'X-Amz-Signature' in query:
            given = {name.removeprefix('X-Amz-'): value for name, value in query.items()}
            uri = re.sub('(?<=[?&])X-Amz-Signature=[^&]*&?', '', uri).rstrip('&')
        else:
            given = dict(re.findall(r'\b(\w+)=([^,\s]+)', environ['HTTP_AUTHORIZATION']))
            given['Date'] = environ['HTTP_X_AMZ_DATE']
        _, _, region, service, _ = given['Credential'].rsplit('/', 4)
        auth = (S3SigV4QueryAuth if presigned else S3SigV4Auth) if service == 's3' else SigV4Auth
        request = AWSRequest(environ['REQUEST_METHOD'], f'http://{self.host}{uri}')
        names = {f'HTTP_{name}'.upper().replace('-', '_'): name for name in given['SignedHeaders'].split(';')}
        for key, name in names.items():
            request.headers[name] = environ[re.sub('^HTTP_(?=CONTENT_(TYPE|LENGTH)$)', '', key)]
        if auth is SigV4Auth:
            length = environ['CONTENT_LENGTH']
            request.data = environ['wsgi.input'].read(min(int(length), BODY) if length.isdecimal() else 0)
            environ['wsgi.input'] = io.BytesIO(request.data)
        request.context['timestamp'] = given['Date']
        signer = auth(self.credentials, service, region)
        right = signer.signature(signer.string_to_sign(request, signer.canonical_request(request)), request)
        then = datetime.datetime.strptime(given['Date'] + '+0000', '%Y%m%dT%H%M%SZ%z').timestamp()
        fresh = not presigned or time.time() < then + float(given['Expires'])
        complete = all(key in names for key in environ if key.startswith('HTTP_X_AMZ_'))  # a header can copy an object
        here = request.headers['host'] == self.host
        if not (fresh and complete and here and hmac.compare_digest(right, given['Signature'])):
            raise PermissionError
        return service


def may_connect(port: int) -> bool:
    """Return whether a connection from this port of 127.0.0.1 is this user's or root's; only Linux tells."""
    pattern = rf' 0100007F:{port:04X} 0100007F:\w+ (?:\S+ ){{4}} *(\d+)'
    with contextlib.suppress(OSError):
        owners = re.findall(pattern, pathlib.Path('/proc/net/tcp').read_text())
        return {*map(int, owners)} <= {0, os.getuid()}
    return True


def start() -> tuple[RedirectedSession, Callable[[], None]]:
    """Start the stand-in; return (boto session, function that stops it).

    Only this machine reaches it. Containers need no access: the session gives them files. The
    session's credentials are those of an assumed role, so that get_execution_role() finds one.
    """
    logging.getLogger('werkzeug').setLevel(logging.ERROR)  # its server logs every request
    gate = Gate(secret := secrets.token_urlsafe())
    # Not moto's ThreadedMotoServer, which serves its own application and takes no other.
    handler: Any = getattr(moto, 'MotoRequestHandler', WSGIRequestHandler)  # moto's knows underscores, from 5.2 on
    own = type('Handler', (handler,), {'timeout': 10, 'log_error': lambda *_: None})  # no connection stays silent
    server: Any = make_server('127.0.0.1', 0, gate, threaded=True, request_handler=own)
    server.verify_request = lambda _, client: may_connect(client[1])
    gate.host = f'127.0.0.1:{server.server_port}'
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()

    def stop() -> None:
        server.shutdown()
        thread.join()

    root = RedirectedSession(url := f'http://{gate.host}', 'embedded', secret)
    iam = root.client('iam')
    try:
        role = iam.create_role(RoleName=ROLE, AssumeRolePolicyDocument='{}')['Role']
    except iam.exceptions.EntityAlreadyExistsException:  # moto keeps its state for the whole process
        role = iam.get_role(RoleName=ROLE)['Role']
    assumed = root.client('sts').assume_role(RoleArn=role['Arn'], RoleSessionName='notebook')['Credentials']
    return RedirectedSession(url, assumed['AccessKeyId'], secret, assumed['SessionToken']), stop
