"""SageMaker's local mode with the rough edges off: a LocalSession for the notebook.

The SDK's own LocalSession leaves containers and temporary files behind, waits half a minute for
an endpoint that is ready in two seconds, deploys onto a port where something else answers, and
hides why a job or a request failed. What is overridden here mends just that.
"""

import atexit
import collections
import functools
import json
import logging
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import uuid

os.environ.setdefault('SAGEMAKER_SUPPRESS_V2_WARNING', '1')  # v3 has no Chainer estimator
logging.getLogger('sagemaker.config').setLevel(logging.WARNING)  # or importing the SDK prints

import boto3
import botocore.exceptions
import sagemaker.local.entities
import sagemaker.local.image
import sagemaker.local.local_session as sdk
import urllib3
import yaml
from sagemaker.s3 import S3Downloader
from sagemaker.session_settings import SessionSettings

from local_mode import aws
from local_mode.docker import LABEL, check, docker, remove_containers

SUBMIT_DIRECTORY = 'sagemaker_submit_directory'

# The SDK runs two docker commands for every request to find a host that does not change.
sdk.get_docker_host = functools.lru_cache(maxsize=None)(sdk.get_docker_host)


class HostingContainer(sagemaker.local.image._HostingContainer):
    """The thread behind a running endpoint, which prints the container's log and keeps its end."""

    def __init__(self, command):
        super().__init__(command)
        self.daemon = True  # or a script that ends with a live endpoint would never exit
        self.log = collections.deque(maxlen=100)
        self.started = threading.Event()

    def run(self):
        self.process = subprocess.Popen(
            self.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace'
        )
        self.started.set()
        for line in self.process.stdout:
            self.log.append(line)
            sys.stdout.write(line)
        self.process.wait()

    def down(self):
        self.started.wait()
        super().down()


sagemaker.local.image._HostingContainer = HostingContainer


class Container(sagemaker.local.image._SageMakerContainer):
    """A job's or an endpoint's containers, in a network of their own that bears the session's label.

    The SDK's is one for all of this machine's SDKs, and has no label by which to remove it.
    """

    def _generate_compose_file(self, *args, **kwargs):
        content = super()._generate_compose_file(*args, **kwargs)
        if 'networks' in content:
            content['networks']['sagemaker-local'] = {'labels': {LABEL: self.sagemaker_session.name}}
            path = os.path.join(self.container_root, sagemaker.local.image.DOCKER_COMPOSE_FILENAME)
            with open(path, 'w') as f:
                yaml.dump(content, f)
        return content


sdk._SageMakerContainer = sagemaker.local.entities._SageMakerContainer = Container


class ServingContainer(Container):
    """A serving container that only this machine reaches, and that can write to /tmp only.

    Where the user's requirements are to be installed it can write to its own file system, too.
    """

    requirements = False

    def _prepare_serving_volumes(self, model_location):
        volumes = super()._prepare_serving_volumes(model_location)
        for volume in volumes:
            if volume.host_dir.startswith(self.sagemaker_session.directory):
                os.chmod(
                    volume.host_dir, 0o755
                )  # for workers that are not root; nobody gets here from outside
        return volumes

    def _create_docker_host(self, *args, **kwargs):
        host = super()._create_docker_host(*args, **kwargs)
        if not self.requirements:
            host.update(read_only=True, tmpfs=['/tmp'])
        if 'ports' in host and sdk.get_docker_host() == 'localhost':
            host['ports'] = ['127.0.0.1:' + port for port in host['ports']]
        return host


class SagemakerClient(sdk.LocalSagemakerClient):
    """Training jobs and endpoints in local containers."""

    def create_training_job(
        self,
        TrainingJobName,
        AlgorithmSpecification,
        OutputDataConfig,
        ResourceConfig,
        HyperParameters=None,
        Environment=None,
        **kwargs,
    ):
        """Run a training job; RuntimeError with the script's traceback where it fails."""
        check(AlgorithmSpecification['TrainingImage'])
        session = self.sagemaker_session
        before = set(os.listdir(session.directory))
        HyperParameters = dict(HyperParameters or {})
        if SUBMIT_DIRECTORY in HyperParameters:
            code = json.loads(HyperParameters[SUBMIT_DIRECTORY])
            HyperParameters[SUBMIT_DIRECTORY] = json.dumps(session.local_copy(code))
        # What the hosts of a job log in to each other with, see container/training.py.
        Environment = {**(Environment or {}), 'SAGEMAKER_MPI_SECRET': secrets.token_hex()}
        hosts, config = ResourceConfig['InstanceCount'], session.config
        if hosts > 1:  # each would take this machine's cores for its own
            cores = int(docker('info', '--format', '{{.NCPU}}'))
            local = config.get('local', {})
            session.config = {
                **config,
                'local': {
                    **local,
                    'container_config': {**local.get('container_config', {}), 'cpus': cores / hosts},
                },
            }
        try:
            super().create_training_job(
                TrainingJobName=TrainingJobName,
                AlgorithmSpecification=AlgorithmSpecification,
                OutputDataConfig=OutputDataConfig,
                ResourceConfig=ResourceConfig,
                Environment=Environment,
                HyperParameters=HyperParameters,
                **kwargs,
            )
        except RuntimeError as e:
            output = '{}/{}/output/output.tar.gz'.format(
                OutputDataConfig['S3OutputPath'].rstrip('/'), TrainingJobName
            )
            raise RuntimeError(
                f'Training job {TrainingJobName} failed. {session.read_failure(output) or e}'
            ) from None
        finally:
            session.config = config
            if OutputDataConfig['S3OutputPath'].startswith('s3://'):
                # The SDK leaves the downloaded channels here, some 200 MB a job.
                for name in set(os.listdir(session.directory)) - before:
                    shutil.rmtree(os.path.join(session.directory, name), ignore_errors=True)
            session.remove_stopped_containers()

    def create_endpoint(self, EndpointName, EndpointConfigName, Tags=None):
        """Start an endpoint and return once it answers; RuntimeError with its log if it stops."""
        session = self.sagemaker_session
        endpoint = sagemaker.local.entities._LocalEndpoint(EndpointName, EndpointConfigName, Tags, session)
        model, variant = endpoint.primary_container, endpoint.production_variant
        check(model['Image'])
        session.check_serving_port()
        key = SUBMIT_DIRECTORY.upper()
        environment = dict(model['Environment'])
        if key in environment:
            environment[key] = session.local_copy(environment[key])
        endpoint.container = ServingContainer(
            variant['InstanceType'], variant['InitialInstanceCount'], model['Image'], session
        )
        endpoint.container.requirements = os.path.exists(
            os.path.join(environment.get(key, '').replace('file://', ''), 'requirements.txt')
        )
        endpoint.container.serve(model['ModelDataUrl'], environment)
        self._endpoints[EndpointName] = endpoint
        try:
            session.wait_until_serving(endpoint.container.container)
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


class RuntimeClient(sdk.LocalSagemakerRuntimeClient):
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
            raise botocore.exceptions.ClientError(
                {
                    'Error': {
                        'Code': 'ModelError',
                        'Message': f'The container did not answer within {self.timeout} s.',
                    }
                },
                'InvokeEndpoint',
            ) from None
        except urllib3.exceptions.HTTPError as e:
            raise ConnectionError(
                f'Nothing answers on port {self.serving_port}: is the endpoint {EndpointName} deployed? ({e})'
            ) from None
        status = response['Body'].status
        if status >= 400:
            raise botocore.exceptions.ClientError(
                {
                    'Error': {
                        'Code': 'ModelError',
                        'Message': 'Received error {} from the container: {}'.format(
                            status, response['Body'].read().decode('utf-8', 'replace').strip()
                        ),
                    }
                },
                'InvokeEndpoint',
            )
        return response


class Session(sdk.LocalSession):
    """A LocalSession which leaves nothing behind.

    boto_session: where S3, STS and IAM are. serving_port: the port of this machine on which
    endpoints answer, 8080 by default. close() stops and removes what the session started;
    it also runs when the interpreter exits.
    """

    def __init__(self, boto_session=None, serving_port=8080, sagemaker_config=None):
        self.name = uuid.uuid4().hex[:12]
        super().__init__(boto_session=boto_session, sagemaker_config=sagemaker_config)
        self.sagemaker_client = SagemakerClient(self)
        self.sagemaker_runtime_client = RuntimeClient(self.config)
        # Below /private on a Mac, where Docker Desktop can mount it.
        self.directory = os.path.realpath(tempfile.mkdtemp(prefix=LABEL + '-'))
        self.settings = SessionSettings(local_download_dir=self.directory)  # where the SDK packs the script
        self.set_serving_port(serving_port)
        self.stop_aws = None
        atexit.register(self.close)

    def set_serving_port(self, serving_port):
        """Let the next endpoint answer on this port of this machine."""
        self.serving_port = serving_port
        self.config = {
            'local': {
                'serving_port': serving_port,
                'container_root': self.directory,
                'container_config': {'labels': {LABEL: self.name}, 'init': True},
            }
        }

    def close(self):
        """Stop this session's endpoints and its embedded AWS, and remove its temporary files."""
        atexit.unregister(self.close)
        for name, endpoint in list(self.sagemaker_client._endpoints.items()):
            if endpoint.local_session is self:
                self.sagemaker_client.delete_endpoint(name)
        if shutil.which('docker'):
            self.remove_containers()
        if self.stop_aws:
            self.stop_aws()
            self.stop_aws = None
        shutil.rmtree(self.directory, ignore_errors=True)

    def wait_for_endpoint(self, endpoint, poll=0, live_logging=False):
        """Return at once: create_endpoint has waited already, without the SDK's 30 s naps."""
        return self.sagemaker_client.describe_endpoint(endpoint)

    def remove_stopped_containers(self):
        """Remove what finished jobs and deleted endpoints of this session left in Docker; print why, where it cannot."""
        self.remove_containers('status=exited', 'status=created', 'status=dead')

    def remove_containers(self, *filters):
        try:
            remove_containers(self.name, *filters)
        except RuntimeError as e:  # which must not hide why a job failed, nor end close()
            print(f'Could not remove containers of this session: {e}')

    def local_copy(self, code):
        """Unpack the user's code from S3, as SageMaker does; return it as a file:// directory.

        The SDK mounts a file:// directory at /opt/ml/code, so that containers need no S3.
        """
        if not code.startswith('s3://'):
            return code
        directory = tempfile.mkdtemp(dir=self.directory)
        os.chmod(directory, 0o755)  # as above, for the workers
        S3Downloader.download(code, directory, sagemaker_session=self)
        archive = os.path.join(directory, os.path.basename(code))
        with tarfile.open(archive) as tar:
            tar.extractall(directory, filter='data')
        os.remove(archive)
        return 'file://' + directory

    def read_failure(self, output):
        """Return the text of /opt/ml/output/failure in a job's output.tar.gz on S3, or ''."""
        directory = tempfile.mkdtemp(dir=self.directory)
        try:
            S3Downloader.download(output, directory, sagemaker_session=self)
            with tarfile.open(os.path.join(directory, 'output.tar.gz')) as tar:
                return tar.extractfile('failure').read().decode('utf-8', 'replace')
        except (OSError, KeyError, ValueError, botocore.exceptions.ClientError):
            return ''  # no such output, or not on S3

    def check_serving_port(self):
        """Raise RuntimeError if another program answers where the endpoint is to answer."""
        with socket.socket() as s:
            if s.connect_ex((sdk.get_docker_host(), self.serving_port)):
                return
        taken = docker(
            'ps',
            '--filter',
            f'publish={self.serving_port}',
            '--filter',
            'label=' + LABEL,
            '--format',
            f'{{{{.Names}}}} {{{{.Label "{LABEL}"}}}}',
        ).split()
        if not taken:
            who, remedy = 'another program', 'Stop it'
        elif taken[1] == self.name:
            who, remedy = (
                'an earlier endpoint of this notebook',
                ('Delete that one with predictor.delete_endpoint()'),
            )
        else:
            who = 'an endpoint of another notebook, container ' + taken[0]
            remedy = f'If that notebook is gone, remove it with `docker rm -f {taken[0]}`'
        raise RuntimeError(
            f'Port {self.serving_port} is taken by {who}; its answers would pass for those of your new model. {remedy}, or use '
            f'another port: open_session(serving_port={self.serving_port + 1}).'
        )

    def wait_until_serving(self, hosting, timeout=120):
        """Return once /ping answers 200; RuntimeError with the container's log if it stops."""
        url = f'http://{sdk.get_docker_host()}:{self.serving_port}/ping'
        http = urllib3.PoolManager(retries=False, timeout=2)
        deadline = time.monotonic() + timeout
        while hosting.is_alive() and time.monotonic() < deadline:
            try:
                if http.request('GET', url).status == 200:
                    return
            except urllib3.exceptions.HTTPError:
                pass
            time.sleep(0.1)
        raise RuntimeError(
            'The endpoint {}. Its log ends:\n{}'.format(
                f'did not answer within {timeout} s' if hosting.is_alive() else 'stopped',
                ''.join(hosting.log),
            )
        )


def open_session(embedded=None, serving_port=8080):
    """Return a Session on your AWS account or on an embedded one; print which.

    embedded: True or False; by default, whether this machine has no AWS credentials.
    """
    if embedded is None:
        embedded = boto3.Session().get_credentials() is None
    if embedded:
        boto_session, stop = aws.start()
        # No usage is reported from an AWS that is not there, and its credentials do not expire: nobody need
        # ask EC2's metadata service, which is another machine's, for better ones.
        os.environ['USE_SHORT_LIVED_CREDENTIALS'] = '1'
        for name in 'sagemaker.telemetry', 'sagemaker.local':
            logging.getLogger(name).setLevel(logging.ERROR)
        session = Session(
            boto_session,
            serving_port,
            {'SchemaVersion': '1.0', 'SageMaker': {'PythonSDK': {'Modules': {'TelemetryOptOut': True}}}},
        )
        session.stop_aws = stop
        print(f'AWS: embedded on this machine, no account needed ({boto_session.endpoint_url})')
    else:
        if boto3.Session().region_name is None:
            raise ValueError('There are AWS credentials but no region: set AWS_DEFAULT_REGION.')
        session = Session(serving_port=serving_port)
        print(f'AWS: your account {session.account_id()} in {session.boto_region_name}')
    return session
