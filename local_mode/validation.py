"""This module checks requests by botocore's model of SageMaker's API, and refuses what local mode does not have."""

import functools
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import botocore.session
from botocore.errorfactory import ClientExceptionsFactory
from botocore.exceptions import ClientError
from local_mode.versions import UNCONFIGURED

ROLES = {'RoleArn', 'ExecutionRoleArn'}  # nobody takes a role here: any name does
# What only local mode takes: file://, an empty output_path, and the names that the SDK's local pipelines give jobs.
LOCAL = re.compile(r'file://.*|local|local_gpu||[\w-]+-\d{10}-[0-9a-f]{4}', re.DOTALL)


@functools.cache
def model(service: str = 'sagemaker') -> Any:
    """Return botocore's model of a service's API; SageMaker's is a file of megabytes."""
    return botocore.session.Session(session_vars=UNCONFIGURED).get_service_model(service)


@functools.cache
def exceptions(service: str) -> Any:
    """Return what `exceptions` of boto3's client of a service is: its attributes are subclasses of ClientError."""
    return ClientExceptionsFactory().create_client_exceptions(model(service))


def error(operation: str, code: str, message: str, **more: Any) -> ClientError:
    """Return the exception that boto3's client raises for a code; more: further keys of its `response`."""
    service = 'sagemaker-runtime' if operation == 'InvokeEndpoint' else 'sagemaker'
    return exceptions(service).from_code(code)({'Error': {'Code': code, 'Message': message}, **more}, operation)


def check(operation: str, request: dict[str, Any], jobs: Collection[str] = ()) -> None:
    """Raise ClientError for values that AWS's API refuses by pattern, length or size, or for the name of one of jobs.

    Not checked: enumerations, such as the instance types, and dependencies of values on each other.
    """
    faults = [*breaches(model().operation_model(operation).input_shape, request, '')]
    if faults:
        text = f'{len(faults)} validation error{"s" * (len(faults) > 1)} detected: {"; ".join(faults)}'
        raise error(operation, 'ValidationException', text)
    if jobs and (name := request[f'{operation.removeprefix("Create")}Name']) in jobs:
        raise error(operation, 'ResourceInUse', f'There is a job {name} already: use another name.')


def existing(operation: str, jobs: Mapping[str, Any], name: str) -> Any:
    """Return the job of that name. Raises AWS's ClientError if there is none."""
    if name not in jobs:
        raise error(operation, 'ResourceNotFound', f'Requested resource not found: there is no job {name} here.')
    return jobs[name]


def breaches(shape: Any, value: Any, path: str) -> Iterator[str]:
    """Yield a sentence for each value that breaks the model's patterns, lengths or sizes."""
    if value is None:
        return
    if shape.type_name == 'structure':
        for name, member in shape.members.items():
            given = None if name in ROLES else value.get(name)
            yield from breaches(member, given, f'{path}.{name[0].lower()}{name[1:]}'.lstrip('.'))
    elif shape.type_name == 'list':
        for i, item in enumerate(value):
            yield from breaches(shape.member, item, f'{path}.{i + 1}.member')
    elif shape.type_name == 'map':
        for key, item in value.items():
            yield from breaches(shape.key, key, path)
            yield from breaches(shape.value, str if item is None else item, f'{path}.{key}')  # None is no value
    for must in limits(shape, value):
        yield f"Value '{value!s:.80}' at '{path}' failed to satisfy constraint: Member must {must}"


def limits(shape: Any, value: Any) -> Iterator[str]:
    """Yield the demands of the model that a value does not meet, in AWS's words."""
    kind, least, most = shape.type_name, shape.metadata.get('min'), shape.metadata.get('max')
    if kind == 'string' and not isinstance(value, str):
        yield 'be a string'
    elif kind in ('string', 'list', 'map') and not (kind == 'string' and LOCAL.fullmatch(value)):
        if most is not None and len(value) > most:
            yield f'have length less than or equal to {most}'
        pattern = shape.metadata.get('pattern', '') if kind == 'string' else ''
        if pattern and '\\p' not in pattern and not re.fullmatch(pattern, value, re.DOTALL):
            yield f'satisfy regular expression pattern: {pattern}'
    elif kind in ('integer', 'long', 'float'):
        if least is not None and value < least:
            yield f'have value greater than or equal to {least}'
        if most is not None and value > most:
            yield f'have value less than or equal to {most}'


def refuse(names: Collection[str], who: str = 'Local mode') -> None:
    """Raise ValueError if there are any names: local mode does not have these things."""
    if names:
        raise ValueError(f'{who} has no {", ".join(sorted(names))}: leave that out.')


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
    refuse(refused)
