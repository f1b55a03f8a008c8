"""Requests to endpoints have the headers that SageMaker sends, and their answers the keys of boto3's."""

import gzip
import http.server
import threading
import types

import pytest
from botocore.exceptions import ClientError
from local_mode import open_session
from sagemaker.predictor import Predictor


class Echo(http.server.BaseHTTPRequestHandler):
    """Answers with the request's headers, and with a header of its own."""

    def do_POST(self):
        self.rfile.read(int(self.headers['Content-Length']))
        if self.headers['Accept'] == 'nothing':
            return self.send_error(406, 'no such type')
        self.send_response(200)
        self.send_header('Content-Type', 'text/plain')
        self.send_header('Content-Encoding', 'gzip')  # the client decodes it, if it wants
        self.send_header('X-Amzn-SageMaker-Custom-Attributes', 'answered')
        self.end_headers()
        self.wfile.write(gzip.compress(str(self.headers).encode()))

    def log_message(self, *_):
        pass


@pytest.fixture(scope='module')
def endpoint():
    """Return (session, name of an endpoint that echoes)."""
    session = open_session(embedded=True)
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        running = types.SimpleNamespace(container=thread)
        name = 'echo'
        session.sagemaker_client._endpoints[name] = types.SimpleNamespace(
            port=server.server_port, container=running, production_variant={'VariantName': 'AllTraffic'}
        )
        yield session, name
        del session.sagemaker_client._endpoints[name]
        server.shutdown()
    session.close()


def test_headers_of_a_request_reach_the_script(endpoint):
    session, name = endpoint
    predictor = Predictor(name, session)
    given = dict(custom_attributes='mine', inference_id='7', initial_args={'ContentType': 'a/b', 'SessionId': 'NEW'})
    headers = gzip.decompress(predictor.predict(b'1', **given)).decode().splitlines()
    for header in 'Custom-Attributes: mine', 'Inference-Id: 7', 'Session-Id: NEW':
        assert f'X-Amzn-SageMaker-{header}' in headers
    assert 'Content-Type: a/b' in headers
    client = session.sagemaker_runtime_client
    assert client.invoke_endpoint(EndpointName=name, Body=b'1')['CustomAttributes'] == 'answered'


def test_a_refusal_is_boto3s_exception(endpoint):
    session, name = endpoint
    client = session.sagemaker_runtime_client
    with pytest.raises(client.exceptions.ModelError, match='Received error 406') as error:
        client.invoke_endpoint(EndpointName=name, Body=b'1', Accept='nothing')
    assert error.value.response['OriginalStatusCode'] == 406
    assert 'no such type' in error.value.response['OriginalMessage']
    with pytest.raises(ClientError, match='ValidationError'):
        client.invoke_endpoint(EndpointName='none', Body=b'1')
    client = session.sagemaker_client
    with pytest.raises(client.exceptions.ResourceNotFound):
        client.stop_training_job('none')


@pytest.mark.parametrize(
    'operation, kind',
    [
        ('stop_training_job', 'TrainingJob'),
        ('describe_training_job', 'TrainingJob'),
        ('describe_processing_job', 'ProcessingJob'),
        ('describe_transform_job', 'TransformJob'),
        ('describe_hyper_parameter_tuning_job', 'HyperParameterTuningJob'),
        ('list_training_jobs_for_hyper_parameter_tuning_job', 'HyperParameterTuningJob'),
    ],
)
def test_an_unknown_job_is_an_error_of_aws(endpoint, operation, kind):
    session, _ = endpoint
    with pytest.raises(ClientError) as error:
        getattr(session.sagemaker_client, operation)(**{kind + 'Name': 'none'})
    theirs = operation in ('describe_training_job', 'describe_transform_job')  # the SDK's code, and AWS's in fact
    assert error.value.response['Error']['Code'] == ('ValidationException' if theirs else 'ResourceNotFound')
