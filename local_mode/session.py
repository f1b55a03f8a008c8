"""This module has the SageMaker session for local mode, which leaves nothing behind."""

import atexit
import contextlib
import copy
import functools
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError
from local_mode import aws, cells, patches
from local_mode.clients import SagemakerClient
from local_mode.endpoints import RuntimeClient
from local_mode.engines.choose import choose
from local_mode.engines.interface import Engine
from local_mode.errors import EngineError, LocalModeError, paste
from local_mode.names import LABEL, label, of_this_user, proxies
from local_mode.versions import SessionSettings, image, is_broken, local_session

__all__ = ['Session', 'open_session']


class Closed:
    """Takes the place of what a closed session had."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__'):  # Python asks whether there is such a method
            raise AttributeError(name)
        raise LocalModeError('This session is closed: make the estimator or predictor anew, with the present session.')


class Session(local_session.LocalSession):
    """A LocalSession that runs on an engine of ours and leaves nothing behind.

    boto_session: where S3, STS and IAM are. serving_port: the port of this machine on which endpoints answer;
    by default each takes 8080 or the next that is free. engine: Docker or processes, by default as LOCAL_MODE
    or this machine say. Other arguments are those of the SDK's class. close() stops and removes what the
    session started; it also runs when the interpreter exits.
    """

    def __init__(
        self,
        boto_session: boto3.Session | None = None,
        serving_port: int | None = None,
        engine: Engine | None = None,
        **kwargs: Any,
    ) -> None:
        patches.apply()
        self.name, self.opener = uuid.uuid4().hex[:12], os.getpid()
        self.engine = engine or choose()
        super().__init__(boto_session=boto_session, **kwargs)
        self.sagemaker_client = SagemakerClient(self)
        self.sagemaker_runtime_client = RuntimeClient(self)
        # Below /private on a Mac, where Docker Desktop can mount it.
        self.directory = os.path.realpath(tempfile.mkdtemp(prefix=LABEL + '-'))
        self.settings = SessionSettings(local_download_dir=self.directory)  # where the SDK packs the script
        self.set_serving_port(serving_port or self.local.get('serving_port'))
        self.stop_aws: Callable[[], None] | None = None
        atexit.register(self.close)

    def set_serving_port(self, serving_port: int | None) -> None:
        """Let the next endpoint answer on this port of this machine; None: on 8080 or the next free one."""
        self.takes_next_port = serving_port is None
        self.use_port(serving_port or 8080)

    @property
    def local(self) -> dict[str, Any]:
        """The settings of local mode in `config`, also those of the user."""
        return (self.config or {}).get('local', {})

    def use_port(self, serving_port: int) -> None:
        self.serving_port = serving_port
        self.config = {'local': {**self.local, 'serving_port': serving_port, 'container_root': self.directory}}

    def in_own_directory(self) -> 'Session':
        """Return this session, as a job sees it: with a directory below for all that the SDK writes, and its port."""
        own = copy.copy(self)
        own.directory = tempfile.mkdtemp(dir=self.settings.local_download_dir)  # a closed session has none
        own.sagemaker_runtime_client = RuntimeClient(own)
        own.use_port(self.serving_port)
        return own

    def labels(self) -> dict[str, str]:
        """Return the labels of this session's containers; clean() goes by those other than its name."""
        return {LABEL: self.name, label('directory'): self.directory, **of_this_user()}

    def environment(self, given: Mapping[str, Any]) -> dict[str, str]:
        """Return a container's variables: credentials, proxies, and the given ones."""
        values = {name: str(value) for name, value in given.items()}
        return {'PYTHONUNBUFFERED': '1', **proxies(), **self.credentials(), **values}

    def credentials(self) -> dict[str, str]:
        """Return the variables that give a container this session's credentials."""
        if not self.stop_aws:
            return dict(pair.split('=', 1) for pair in image._aws_credentials(self.boto_session) or [])
        # Those of the stand-in do not expire: nobody need ask EC2's metadata service for better ones.
        names = 'AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY', 'AWS_SESSION_TOKEN'
        keys: Any = self.boto_session.get_credentials()
        return dict(zip(names, keys.get_frozen_credentials()))

    def close(self) -> None:
        """Stop this session's endpoints and its stand-in for AWS, and remove its temporary files."""
        atexit.unregister(self.close)
        self.settings = self.sagemaker_runtime_client = Closed()  # type: ignore[assignment]
        if os.getpid() != self.opener:  # a fork of the process that opened it
            return
        with contextlib.ExitStack() as stack:  # from the last to the first, whichever of them fails
            stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
            if self.stop_aws:
                stack.callback(self.stop_aws)
                self.stop_aws = None
                if boto3.DEFAULT_SESSION is self.boto_session:
                    boto3.DEFAULT_SESSION = None
            stack.callback(self.remove_containers, {LABEL: self.name})
            for name, endpoint in list(self.sagemaker_client._endpoints.items()):
                if endpoint.local_session is self:
                    stack.callback(self.sagemaker_client.delete_endpoint, name)

    logs_for_transform_job = local_session.LocalSession.logs_for_job  # which does nothing: the SDK's asks CloudWatch

    def wait(self, method: str, job: str, poll: int = 0) -> Any:
        """Return a job's description by one of the SDK's methods, without its naps."""
        return getattr(super(), method)(job, 0.1)

    wait_for_job = functools.partialmethod(wait, 'wait_for_job')
    wait_for_transform_job = functools.partialmethod(wait, 'wait_for_transform_job')
    wait_for_tuning_job = functools.partialmethod(wait, 'wait_for_tuning_job')

    def wait_for_endpoint(self, endpoint: str, poll: int = 0, live_logging: bool = False) -> Any:
        """Return at once: create_endpoint has waited already, without the SDK's 30 s naps."""
        return self.sagemaker_client.describe_endpoint(endpoint)

    def remove_containers(self, labels: Mapping[str, str]) -> None:
        """Remove this session's containers that have these labels, or say why not."""
        try:
            self.engine.remove(labels)
        except EngineError as e:  # which must not hide why a job failed, nor end close()
            print(f'Could not remove containers of this session: {e}')


opened: list[tuple[cells.Cell, Session]] = []  # in notebooks


def replace_earlier(session: Session) -> None:
    """Close the sessions that earlier runs of this cell opened, and print what ends with them."""
    cell = cells.current()
    for earlier, other in opened[:]:
        if cell.ran_before(earlier):
            opened.remove((earlier, other))
            running = [n for n, e in other.sagemaker_client._endpoints.items() if e.local_session is other]
            other.close()
            ended = f', whose endpoint {", ".join(running)} is deleted' if running else ''
            print(f'This session replaces the one before{ended}. Run the cells below again, too.')
    if cell.name:
        opened.append((cell, session))


def has_credentials() -> bool:
    """Return whether there are AWS credentials here that work; LocalModeError if some are broken."""
    try:
        credentials = boto3.Session().get_credentials()
        return bool(credentials and credentials.get_frozen_credentials())
    except (BotoCoreError, ClientError) as e:  # of a missing profile, an expired login, an unreadable file
        remedy = f'Mend that, or use the stand-in{paste("sagemaker_session = open_session(embedded=True)")}'
        raise LocalModeError(f'Your AWS configuration cannot be used: {str(e).rstrip(".")}. {remedy}') from None


def open_session(embedded: bool | None = None, serving_port: int | None = None) -> Session:
    """Return a Session on your AWS account or on the stand-in for AWS; print which.

    embedded: whether to use the stand-in; by default if this machine has no AWS credentials. serving_port: of the
    endpoints; by default each takes 8080 or the next port that is free.
    """
    if embedded is None:
        embedded = not has_credentials()
    patches.apply()
    patches.quiet(embedded)
    engine = choose()  # or raise, before anything runs
    if embedded:
        boto_session, stop = aws.start()
        if is_broken():  # each estimator of the SDK makes a client of the default session
            boto3.DEFAULT_SESSION = boto_session  # type: ignore[assignment]
        opt_out = {'PythonSDK': {'Modules': {'TelemetryOptOut': True}}}
        config = {'SchemaVersion': '1.0', 'SageMaker': opt_out}
        session = Session(boto_session, serving_port, engine, sagemaker_config=config)
        session.stop_aws = stop
        replace_earlier(session)
        where = f'a stand-in on this machine, no account needed ({boto_session.endpoint_url})'
    else:
        if boto3.Session().region_name is None:
            raise ValueError('There are AWS credentials but no region: set AWS_DEFAULT_REGION.')
        session = Session(serving_port=serving_port, engine=engine)
        replace_earlier(session)
        instead = 'open_session(embedded=True) takes a stand-in instead'
        where = f'your account {session.account_id()} in {session.boto_region_name} ({instead})'
    print(f'AWS: {where}')
    return session
