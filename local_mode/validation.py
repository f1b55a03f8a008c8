"""Checks of requests: by botocore's model of SageMaker's API, and for what local mode does not have."""

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import botocore.session
from local_mode.endpoints import error

LOCAL = re.compile('file://|local(_gpu)?$')  # what only local mode takes


@functools.cache
def shape(operation: str) -> Any:
    model = botocore.session.get_session().get_service_model('sagemaker')
    return model.operation_model(operation).input_shape


def check(operation: str, request: dict[str, Any]) -> None:
    """Raise ClientError, a ValidationException, unless AWS's API would take a request."""
    faults = [*breaches(shape(operation), request, '')]
    if faults:
        text = f'{len(faults)} validation error{"s" * (len(faults) > 1)} detected: {"; ".join(faults)}'
        raise error(operation, 'ValidationException', text)


def breaches(shape: Any, value: Any, path: str) -> Iterator[str]:
    """Yield a sentence for each value that breaks the model's patterns or lengths."""
    if value is None:
        return
    if shape.type_name == 'structure':
        for name, member in shape.members.items():
            yield from breaches(member, value.get(name), f'{path}.{name[0].lower()}{name[1:]}'.lstrip('.'))
    elif shape.type_name == 'list':
        for i, item in enumerate(value):
            yield from breaches(shape.member, item, f'{path}.{i + 1}.member')
    elif shape.type_name == 'map':
        for key, item in value.items():
            yield from breaches(shape.key, key, path)
            if item is None:
                yield f"Value 'None' at '{path}.{key}' failed to satisfy constraint: Member must be a string"
            yield from breaches(shape.value, item, f'{path}.{key}')
    elif shape.type_name == 'string' and not LOCAL.match(value):
        limits = shape.metadata
        pattern = limits.get('pattern')
        start = f"Value '{value:.80}' at '{path}' failed to satisfy constraint: Member must"
        if len(value) > limits.get('max', len(value)):
            yield f'{start} have length less than or equal to {limits["max"]}'
        if pattern and '\\p' not in pattern and not re.fullmatch(pattern, value, re.DOTALL):
            yield f'{start} satisfy regular expression pattern: {pattern}'


def refuse_used(operation: str, name: str, jobs: Mapping[str, Any]) -> None:
    """Raise ClientError for the name of a job that was."""
    if name in jobs:
        raise error(operation, 'ResourceInUse', f'There is a job {name} already: use another name.')


def refuse_what_only_aws_does(request: dict[str, Any]) -> None:
    """Raise ValueError for a training job that would run here in another way than on SageMaker."""
    modes, refused = {request['AlgorithmSpecification'].get('TrainingInputMode')}, set[str]()
    for channel in request['InputDataConfig'] or []:
        modes.add(channel.get('InputMode'))
        refused |= {name for name in ('CompressionType', 'RecordWrapperType') if channel.get(name, 'None') != 'None'}
        source = channel['DataSource'].get('S3DataSource', {})
        refused |= {*channel['DataSource']} - {'S3DataSource', 'FileDataSource'}
        refused |= {name for name in ('InstanceGroupNames', 'HubAccessConfig', 'ModelAccessConfig') if name in source}
    rules = 'DebugRuleConfigurations', 'ProfilerRuleConfigurations', 'TensorBoardOutputConfig'
    refused |= {name for name in rules if request.get(name)}
    refused |= {'InstanceGroups'} & {*request['ResourceConfig']}
    if modes - {None, 'File'}:
        raise ValueError("In local mode channels are files: input_mode='File'.")
    if refused:
        raise ValueError(f'Local mode has no {", ".join(sorted(refused))}: leave that out.')
