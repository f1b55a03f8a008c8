"""Data capture: an endpoint's requests and answers, as JSON lines on S3, one object each."""

import base64
import datetime
import json
import random
import uuid
from collections.abc import Mapping
from typing import Any

from local_mode.versions import parse_s3_url

Message = tuple[bytes, str]  # a body and its content type


def capture(
    session: Any, name: str, config: Mapping[str, Any], given: Message, answer: Message, inference_id: Any
) -> None:
    """Write a request to an endpoint, and its answer, where a DataCaptureConfig says, if they are in its sample."""
    if not config['EnableCapture'] or random.random() * 100 >= config['InitialSamplingPercentage']:
        return
    modes = {option['CaptureMode'] for option in config['CaptureOptions']}
    sides = ('Input', 'endpointInput', given), ('Output', 'endpointOutput', answer)
    data = {name: encode(mode, message, config) for mode, name, message in sides if mode in modes}
    now = datetime.datetime.now(datetime.UTC)
    identity = str(uuid.uuid4())
    named = {'inferenceId': inference_id} if inference_id else {}
    metadata = {'eventId': identity, **named, 'inferenceTime': now.strftime('%Y-%m-%dT%H:%M:%SZ')}
    line = json.dumps({'captureData': data, 'eventMetadata': metadata, 'eventVersion': '0'})
    bucket, prefix = parse_s3_url(config['DestinationS3Uri'])
    key = f'{prefix}/{name}/AllTraffic/{now:%Y/%m/%d/%H/%M-%S}-{now.microsecond // 1000:03}-{identity}.jsonl'
    session.s3_client.put_object(Bucket=bucket, Key=key.lstrip('/'), Body=line.encode() + b'\n')


def encode(mode: str, message: Message, config: Mapping[str, Any]) -> dict[str, str]:
    """Return one side as text if it is CSV or JSON, and otherwise in base 64."""
    body, kind = message
    types = config.get('CaptureContentTypeHeader') or {}
    for encoding, known in ('CSV', types.get('CsvContentTypes', [])), ('JSON', types.get('JsonContentTypes', [])):
        if kind in known or encoding.lower() in kind.partition(';')[0]:
            return dict(observedContentType=kind, mode=mode.upper(), data=body.decode(), encoding=encoding)
    return dict(observedContentType=kind, mode=mode.upper(), data=base64.b64encode(body).decode(), encoding='BASE64')
