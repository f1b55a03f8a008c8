"""What the SDK calls in local mode in place of AWS's APIs: training jobs, endpoints, requests."""

import contextlib
import json
import os
import secrets
import shutil
import socket
import tarfile
import tempfile
import time

import botocore.exceptions
import sagemaker.local.entities
import urllib3
from local_mode.docker import LABEL, check, docker
from local_mode.sdk import ServingContainer, get_docker_host
from sagemaker.local.local_session import LocalSagemakerClient, LocalSagemakerRuntimeClient
from sagemaker.s3 import S3Downloader

SUBMIT_DIRECTORY = 'sagemaker_submit_directory'


class SagemakerClient(LocalSagemakerClient):
    """Training jobs and endpoints in local containers."""

    def create_training_job(
        self, TrainingJobName, AlgorithmSpecification, OutputDataConfig, ResourceConfig, **kwargs
    ):
        """Run a training job; RuntimeError with the script's traceback where it fails."""
        check(AlgorithmSpecification['TrainingImage'])
        session, config = self.sagemaker_session, self.sagemaker_session.config
        before = set(os.listdir(session.directory))
        hyperparameters = dict(kwargs.pop('HyperParameters', None) or {})
        if SUBMIT_DIRECTORY in hyperparameters:
            code = json.loads(hyperparameters[SUBMIT_DIRECTORY])
            hyperparameters[SUBMIT_DIRECTORY] = json.dumps(local_copy(session, code))
        # What the hosts of a job log in to each other with, see sagemaker_chainer_container/mpi.py.
        environment = {**(kwargs.pop('Environment', None) or {}), 'SAGEMAKER_MPI_SECRET': secrets.token_hex()}
        if ResourceConfig['InstanceCount'] > 1:  # each would take this machine's cores for its own
            cpus = int(docker('info', '--format', '{{.NCPU}}')) / ResourceConfig['InstanceCount']
            container = {**config['local']['container_config'], 'cpus': cpus}
            session.config = {**config, 'local': {**config['local'], 'container_config': container}}
        output = OutputDataConfig['S3OutputPath']
        try:
            super().create_training_job(
                TrainingJobName, AlgorithmSpecification, OutputDataConfig, ResourceConfig,
                Environment=environment, HyperParameters=hyperparameters, **kwargs,
            )  # fmt: skip
        except RuntimeError as e:
            failure = read_failure(session, f'{output.rstrip("/")}/{TrainingJobName}/output/output.tar.gz')
            raise RuntimeError(f'Training job {TrainingJobName} failed. {failure or e}') from None
        finally:
            session.config = config
            if output.startswith('s3://'):  # the SDK leaves the downloaded channels here, some 200 MB a job
                for name in set(os.listdir(session.directory)) - before:
                    shutil.rmtree(os.path.join(session.directory, name), ignore_errors=True)
            session.remove_stopped_containers()

    def create_endpoint(self, EndpointName, EndpointConfigName, Tags=None):
        """Start an endpoint and return once it answers; RuntimeError with its log if it stops."""
        session = self.sagemaker_session
        endpoint = sagemaker.local.entities._LocalEndpoint(EndpointName, EndpointConfigName, Tags, session)
        model, variant = endpoint.primary_container, endpoint.production_variant
        check(model['Image'])
        check_serving_port(session)
        key = SUBMIT_DIRECTORY.upper()
        environment = dict(model['Environment'])
        if key in environment:
            environment[key] = local_copy(session, environment[key])
        endpoint.container = ServingContainer(
            variant['InstanceType'], variant['InitialInstanceCount'], model['Image'], session
        )
        code = environment.get(key, '').replace('file://', '')
        endpoint.container.requirements = os.path.exists(os.path.join(code, 'requirements.txt'))
        endpoint.container.serve(model['ModelDataUrl'], environment)
        self._endpoints[EndpointName] = endpoint
        try:
            wait_until_serving(session, endpoint.container.container)
        except BaseException:
            self.delete_endpoint(EndpointName)
            raise
        endpoint.state = endpoint._IN_SERVICE

    def delete_endpoint(self, EndpointName):
        """Stop an endpoint and remove its container."""
        try:
            super().delete_endpoint(EndpointName)
        except FileNotFoundError:
            pass  # `make clean` has been here
        finally:
            self._endpoints.pop(EndpointName, None)
        self.sagemaker_session.remove_stopped_containers()


class RuntimeClient(LocalSagemakerRuntimeClient):
    """Requests to a local endpoint, with errors raised as on AWS."""

    timeout = 60  # seconds, as on AWS; the SDK would wait for ever

    def __init__(self, config=None):
        super().__init__(config)
        self.http = urllib3.PoolManager(timeout=self.timeout)

    def invoke_endpoint(self, Body, EndpointName, **kwargs):
        """Send a request; ClientError ModelError for a 4xx, a 5xx or no answer in time."""
        try:
            response = super().invoke_endpoint(Body, EndpointName, **kwargs)
        except urllib3.exceptions.ReadTimeoutError:
            raise model_error(f'The container did not answer within {self.timeout} s.') from None
        except urllib3.exceptions.HTTPError as e:
            raise ConnectionError(
                f'Nothing answers on port {self.serving_port}: is the endpoint {EndpointName} deployed? ({e})'
            ) from None
        body = response['Body']
        if body.status >= 400:
            text = body.read().decode('utf-8', 'replace').strip()
            raise model_error(f'Received error {body.status} from the container: {text}')
        return response


def model_error(message):
    error = {'Code': 'ModelError', 'Message': message}
    return botocore.exceptions.ClientError({'Error': error}, 'InvokeEndpoint')


def local_copy(session, code):
    """Unpack the user's code from S3, as SageMaker does; return it as a file:// directory.

    The SDK mounts a file:// directory at /opt/ml/code, so that containers need no S3. Its own local_code
    would mount the script's whole directory instead, and leave out `dependencies`.
    """
    if not code.startswith('s3://'):
        return code
    directory = tempfile.mkdtemp(dir=session.directory)
    os.chmod(directory, 0o755)  # for workers that are not root
    with tar_on_s3(session, code) as tar:
        tar.extraction_filter = getattr(tarfile, 'data_filter', None)  # Debian 12's Python has none
        tar.extractall(directory)
    return 'file://' + directory


def read_failure(session, output):
    """Return the text of /opt/ml/output/failure in a job's output.tar.gz on S3, or ''."""
    try:
        with tar_on_s3(session, output) as tar:
            return tar.extractfile('failure').read().decode('utf-8', 'replace')
    except (OSError, KeyError, ValueError, botocore.exceptions.ClientError):
        return ''  # no such output, or not on S3


@contextlib.contextmanager
def tar_on_s3(session, uri):
    with tempfile.TemporaryDirectory(dir=session.directory) as directory:
        S3Downloader.download(uri, directory, sagemaker_session=session)
        with tarfile.open(os.path.join(directory, os.path.basename(uri))) as tar:
            yield tar


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


def wait_until_serving(session, hosting, timeout=120):
    """Return once /ping answers 200; RuntimeError with the container's log if it stops."""
    url = f'http://{get_docker_host()}:{session.serving_port}/ping'
    http = urllib3.PoolManager(retries=False, timeout=2)
    deadline = time.monotonic() + timeout
    while hosting.is_alive() and time.monotonic() < deadline:
        with contextlib.suppress(urllib3.exceptions.HTTPError):
            if http.request('GET', url).status == 200:
                return
        time.sleep(0.1)
    what = f'did not answer within {timeout} s' if hosting.is_alive() else 'stopped'
    raise RuntimeError(f'The endpoint {what}. Its log ends:\n{"".join(hosting.log)}')
