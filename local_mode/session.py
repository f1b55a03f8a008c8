"""The SageMaker session for local mode, which leaves nothing behind."""

import atexit
import contextlib
import logging
import os
import shutil
import tempfile
import uuid

import boto3
from local_mode import aws
from local_mode.clients import SagemakerClient
from local_mode.docker import LABEL, choose_engine, remove_containers
from local_mode.endpoints import RuntimeClient
from local_mode.versions import PACKAGE, SessionSettings, local_session

if PACKAGE == 'sagemaker':
    import local_mode.estimator  # noqa: F401
else:
    import local_mode.trainer  # noqa: F401

logging.getLogger('sagemaker').setLevel(logging.WARNING)  # INFO says, on red, what one sees


class Session(local_session.LocalSession):
    """A LocalSession which leaves nothing behind.

    boto_session: where S3, STS and IAM are. serving_port: the port of this machine on which
    endpoints answer, 8080 by default. close() stops and removes what the session started;
    it also runs when the interpreter exits.
    """

    def __init__(self, boto_session=None, serving_port=8080, sagemaker_config=None):
        self.name = uuid.uuid4().hex[:12]
        super().__init__(boto_session=boto_session, sagemaker_config=sagemaker_config)
        self.sagemaker_client = SagemakerClient(self)
        self.sagemaker_runtime_client = RuntimeClient(self)
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
        with contextlib.ExitStack() as stack:  # from the last to the first, whichever of them fails
            stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
            if self.stop_aws:
                stack.callback(self.stop_aws)
                self.stop_aws = None
            choose_engine()
            if shutil.which('docker'):
                stack.callback(self.remove_containers)
            for name, endpoint in list(self.sagemaker_client._endpoints.items()):
                if endpoint.local_session is self:
                    stack.callback(self.sagemaker_client.delete_endpoint, name)

    def wait_for_endpoint(self, endpoint, poll=0, live_logging=False):
        """Return at once: create_endpoint has waited already, without the SDK's 30 s naps."""
        return self.sagemaker_client.describe_endpoint(endpoint)

    def remove_stopped_containers(self):
        """Remove what finished jobs and deleted endpoints of this session left in Docker, or say why not."""
        self.remove_containers('status=exited', 'status=created', 'status=dead')

    def remove_containers(self, *filters):
        try:
            remove_containers(self.name, *filters)
        except RuntimeError as e:  # which must not hide why a job failed, nor end close()
            print(f'Could not remove containers of this session: {e}')


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
        for name in 'telemetry', 'local':
            logging.getLogger(f'{PACKAGE}.{name}').setLevel(logging.ERROR)
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
