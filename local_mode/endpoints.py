"""This module finds this machine's endpoints, tells whether they answer, and sends requests to them."""

import base64
import contextlib
import datetime
import errno
import io
import json
import random
import re
import socket
import uuid
from typing import Any

import urllib3
from botocore.exceptions import ClientError
from botocore.response import StreamingBody
from local_mode.engines.interface import Engine
from local_mode.errors import EndpointError, EngineError, paste
from local_mode.names import LABEL, label
from local_mode.validation import error, exceptions
from local_mode.versions import local_session, parse_s3_url

PORT, CONFIG = label('port'), label('config')
VARIANT = 'AllTraffic'  # the SDK's name for the one that deploy() makes, also in another process


def find(engine: Engine, name: str) -> dict[str, str] | None:
    """Return the labels PORT and CONFIG of this machine's endpoint of that name, whoever deployed it, or None."""
    return next(iter(engine.find({label('endpoint'): name}, want=[PORT, CONFIG]).values()), None)


def model_error(message: str, status: int, text: str) -> ClientError:
    """Return boto3's ModelError; status and text: the container's, or 0 and the message if it did not answer."""
    return error('InvokeEndpoint', 'ModelError', message, OriginalStatusCode=status, OriginalMessage=text)


def silence(name: str, port: int) -> str:
    return f'Nothing answers on port {port}: has the endpoint {name} stopped? Then deploy it again.'


class RuntimeClient(local_session.LocalSagemakerRuntimeClient):
    """Sends requests to endpoints of this machine, and raises errors as AWS does."""

    timeout = 60.0  # seconds, as on AWS; the SDK would wait for ever

    def __init__(self, session: Any) -> None:
        super().__init__(session.config)
        self.session = session

    @property
    def exceptions(self) -> Any:
        return exceptions('sagemaker-runtime')

    def invoke_endpoint(  # type: ignore[override]
        self, Body: Any, EndpointName: str, ContentType: Any = None, Accept: Any = None, **more: Any
    ) -> dict[str, Any]:
        """Send a request; ClientError ValidationError for an unknown name, ModelError for a 4xx, a 5xx or
        no answer in time.
        """
        refused = {'TargetModel', 'TargetContainerHostname', 'InferenceComponentName'} & {*more}
        endpoint = self.session.sagemaker_client._endpoints.get(EndpointName)
        variant = endpoint.production_variant['VariantName'] if endpoint else VARIANT
        if refused or more.get('TargetVariant', variant) != variant:
            what = ', '.join(sorted(refused)) or 'other TargetVariant'
            raise error('InvokeEndpoint', 'ValidationError', f'An endpoint in local mode has no {what}.')
        parts = {re.sub('(?<=[a-z])(?=[A-Z])', '-', name): value for name, value in more.items()}
        named = {f'X-Amzn-SageMaker-{part}': value for part, value in parts.items()}  # Custom-Attributes, ...
        headers = {'Content-Type': ContentType, 'Accept': Accept, **named}
        given = {name: value for name, value in headers.items() if value is not None}
        data = Body.encode() if isinstance(Body, str) else Body
        answer = self.request(EndpointName, self.port(EndpointName), data, given)
        if answer.status >= 400:
            text = answer.read().decode('utf-8', 'replace').strip()
            raise model_error(f'Received error {answer.status} from the container: {text}', answer.status, text)
        headers = {name.lower(): value for name, value in answer.headers.items()}
        if getattr(endpoint, 'capture', None):
            answer = io.BytesIO(answer.read())
            sides = {'Input': (data, ContentType or ''), 'Output': (answer.getvalue(), headers.get('content-type', ''))}
            capture(endpoint, sides, more.get('InferenceId'))
        custom = headers.get('x-amzn-sagemaker-custom-attributes')
        metadata = dict(RequestId=str(uuid.uuid4()), HTTPStatusCode=200, HTTPHeaders=headers, RetryAttempts=0)
        return {
            'ResponseMetadata': metadata,
            'ContentType': headers.get('content-type', 'application/octet-stream'),
            'InvokedProductionVariant': variant,
            **({'CustomAttributes': custom} if custom else {}),
            'Body': StreamingBody(answer, headers.get('content-length')),
        }

    def invoke_endpoint_with_response_stream(self, **request: Any) -> dict[str, Any]:
        """Send a request as invoke_endpoint does; the body is a stream of events with the parts of the answer."""
        answer = self.invoke_endpoint(**request)
        parts = answer.pop('Body').iter_chunks()
        return {**answer, 'Body': ({'PayloadPart': {'Bytes': part}} for part in parts)}

    def request(self, name: str, port: int, body: bytes, headers: dict[str, str]) -> Any:
        url = f'http://{self.session.engine.host}:{port}/invocations'
        try:
            raw: Any = dict(headers=headers, preload_content=False, decode_content=False)
            return self.http.request('POST', url, body=body, timeout=self.timeout, **raw)
        except urllib3.exceptions.ReadTimeoutError:
            message = f'The container did not answer within {self.timeout:g} s.'
            raise model_error(message, 0, message) from None
        except urllib3.exceptions.HTTPError as e:
            raise ConnectionError(f'{silence(name, port)} ({e})') from None

    def port(self, name: str) -> int:
        """Return the port on which the endpoint answers; ClientError if there is none of this name."""
        if not name:  # batch transform asks so
            return self.session.serving_port
        client, found = self.session.sagemaker_client, None
        if endpoint := client.running(name):
            return endpoint.port
        known = client._endpoints.get(name)
        try:
            found = find(self.session.engine, name)
        except EngineError:  # the engine does not answer
            if not known:
                raise
        if found:
            return int(found[PORT])
        if known:  # another endpoint may answer at its port
            raise ConnectionError(silence(name, known.port))
        message = f'Endpoint {name} of account {self.session.account_id()} not found: deploy it first.'
        raise error('InvokeEndpoint', 'ValidationError', message)


def capture(endpoint: Any, sides: dict[str, tuple[bytes, str]], inference_id: str | None) -> None:
    """Write a request and its answer, as JSON, where a DataCaptureConfig says, if they are in its sample.

    sides: {'Input' or 'Output': (body, content type)}. A failure is printed: the prediction has succeeded.
    """
    config = endpoint.capture
    if not config['EnableCapture'] or random.random() * 100 >= config['InitialSamplingPercentage']:
        return
    modes = {option['CaptureMode'] for option in config['CaptureOptions']}
    data = {f'endpoint{mode}': encode(mode, *sides[mode], config) for mode in sides if mode in modes}
    now, identity = datetime.datetime.now(datetime.UTC), str(uuid.uuid4())
    named = {'inferenceId': inference_id} if inference_id else {}
    metadata = {'eventId': identity, **named, 'inferenceTime': now.strftime('%Y-%m-%dT%H:%M:%SZ')}
    line = json.dumps({'captureData': data, 'eventMetadata': metadata, 'eventVersion': '0'})
    bucket, prefix = parse_s3_url(config['DestinationS3Uri'])
    where = f'{prefix}/{endpoint.name}/{endpoint.production_variant["VariantName"]}/{now:%Y/%m/%d/%H/%M-%S}'
    key = f'{where}-{now.microsecond // 1000:03}-{identity}.jsonl'.lstrip('/')
    try:
        endpoint.local_session.s3_client.put_object(Bucket=bucket, Key=key, Body=line.encode() + b'\n')
    except Exception as e:  # of the network, of permissions
        print(f'A request to {endpoint.name} could not be captured: {e}')


def encode(mode: str, body: bytes, kind: str, config: dict[str, Any]) -> dict[str, str]:
    """Return one side as text if the configuration names its type as CSV or JSON, and otherwise in base 64."""
    types = config.get('CaptureContentTypeHeader') or {}
    data, encoding = base64.b64encode(body).decode(), 'BASE64'
    for name, known in ('CSV', types.get('CsvContentTypes', [])), ('JSON', types.get('JsonContentTypes', [])):
        if kind.partition(';')[0].strip() in known:
            with contextlib.suppress(UnicodeDecodeError):
                data, encoding = body.decode(), name
    return dict(observedContentType=kind, mode=mode.upper(), data=data, encoding=encoding)


def is_free(host: str, port: int) -> bool:
    """Return whether nobody answers on a port."""
    with socket.socket() as s:
        s.settimeout(1)
        stalls = errno.EAGAIN if host == '127.0.0.1' else 0  # a server that accepts nothing has the port, too
        return s.connect_ex((host, port)) not in (0, stalls)


def check_serving_port(session: Any, first: int = 8080) -> None:
    """Take the next free port if the session may choose; raise EndpointError if its own is taken."""
    engine = session.engine
    if session.takes_next_port:
        session.use_port(next(port for port in range(first, 65536) if is_free(engine.host, port)))
    port = session.serving_port
    if is_free(engine.host, port):
        return
    taken = engine.find({PORT: str(port)}, want=[LABEL])
    if not taken:
        who, remedy = 'another program', 'Stop it.'
    elif {LABEL: session.name} in taken.values():
        who = 'an earlier endpoint of this notebook'
        remedy = f'Delete that one{paste("predictor.delete_endpoint()")}'
    else:
        container = next(iter(taken))
        who = f'an endpoint of another notebook, container {container}'
        remedy = f'If that notebook is gone, remove it{paste(engine.removal(container))}'
    other = f'Or choose the next free port, and then deploy again{paste("sagemaker_session.set_serving_port(None)")}'
    raise EndpointError(
        f'Port {port} is taken by {who}; its answers would pass for those of your new model. {remedy}\n{other}'
    )
