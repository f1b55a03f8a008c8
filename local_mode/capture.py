"""This module writes an endpoint's requests and answers to S3 (data capture), as JSON lines, one object each."""

import base64
import contextlib
import datetime
import json
import random
import uuid
from collections.abc import Mapping
from typing import Any

from local_mode.versions import parse_s3_url

Message = tuple[bytes, str]  # a body and its content type


def capture(endpoint: Any, given: Message, answer: Message, inference_id: str | None) -> None:
    """Write a request and its answer where an endpoint's DataCaptureConfig says, if they are in its sample.

    A failure is printed: the prediction has succeeded.
    """
    config = endpoint.capture
    if not config['EnableCapture'] or random.random() * 100 >= config['InitialSamplingPercentage']:
        return
    modes = {option['CaptureMode'] for option in config['CaptureOptions']}
    sides = ('Input', 'endpointInput', given), ('Output', 'endpointOutput', answer)
    data = {name: encode(mode, message, config) for mode, name, message in sides if mode in modes}
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


def encode(mode: str, message: Message, config: Mapping[str, Any]) -> dict[str, str]:
    """Return one side as text if the configuration names its type as CSV or JSON, and otherwise in base 64."""
    body, kind = message
    types = config.get('CaptureContentTypeHeader') or {}
    data, encoding = base64.b64encode(body).decode(), 'BASE64'
    for name, known in ('CSV', types.get('CsvContentTypes', [])), ('JSON', types.get('JsonContentTypes', [])):
        if kind.partition(';')[0].strip() in known:
            with contextlib.suppress(UnicodeDecodeError):
                data, encoding = body.decode(), name
    return dict(observedContentType=kind, mode=mode.upper(), data=data, encoding=encoding)
