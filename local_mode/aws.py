"""The stand-in for AWS: moto's S3, STS and IAM, served by this process on loopback."""

import logging
from collections.abc import Callable
from typing import Any

import boto3
from moto.server import ThreadedMotoServer

REGION = 'us-east-1'
ROLE = 'SageMakerRole'


class RedirectedSession(boto3.Session):
    """A boto3 session whose clients all talk to one endpoint.

    The SageMaker SDK names public endpoints explicitly in places (STS), so an AWS_ENDPOINT_URL
    would not be enough; and the user's AWS configuration stays untouched.
    """

    def __init__(self, endpoint_url: str, key: str, secret: str, token: str | None = None) -> None:
        super().__init__(key, secret, token, REGION)
        self.endpoint_url = endpoint_url

    def client(self, *args: Any, **kwargs: Any) -> Any:
        return super().client(*args, **{**kwargs, 'endpoint_url': self.endpoint_url})

    def resource(self, *args: Any, **kwargs: Any) -> Any:
        return super().resource(*args, **{**kwargs, 'endpoint_url': self.endpoint_url})


def start() -> tuple[RedirectedSession, Callable[[], None]]:
    """Start an embedded AWS; return (boto session, function that stops it).

    Only this machine reaches it, and containers need not: the session hands them files. The
    session's credentials are those of an assumed role, so that get_execution_role() finds one.
    """
    logging.getLogger('werkzeug').setLevel(logging.ERROR)  # moto's server logs every request
    server = ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)
    server.start()
    url = 'http://{}:{}'.format(*server.get_host_and_port())
    root = RedirectedSession(url, 'embedded', 'embedded')
    iam = root.client('iam')
    try:
        role = iam.create_role(RoleName=ROLE, AssumeRolePolicyDocument='{}')['Role']
    except iam.exceptions.EntityAlreadyExistsException:  # moto keeps its state for the whole process
        role = iam.get_role(RoleName=ROLE)['Role']
    credentials = root.client('sts').assume_role(RoleArn=role['Arn'], RoleSessionName='notebook')['Credentials']
    keys = (credentials[name] for name in ('AccessKeyId', 'SecretAccessKey', 'SessionToken'))
    return RedirectedSession(url, *keys), server.stop
