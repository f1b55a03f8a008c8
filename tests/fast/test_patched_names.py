"""The names that we patch in others' software still exist; docs/patches.md lists them and existing tests."""

import inspect
import json
import re

import chainer_fast
from chainer.dataset import convert
from support import ROOT, python

PAGE = (ROOT / 'docs' / 'patches.md').read_text()
CONTAINER = 'instance_type instance_count image sagemaker_session'
PATCHED = {  # in the SDK: the first parameters, on which we rely
    'local_session:get_docker_host': '',
    'local_session:_SageMakerContainer': CONTAINER,
    'entities:_SageMakerContainer': CONTAINER,
    'image:_HostingContainer': 'command',
    'image:_HostingContainer.down': 'self',
    'image:_SageMakerContainer._compose': 'self detached',
    'image:_stream_output': 'process',
    'image:_SageMakerContainer._generate_compose_file': 'self command',
    'image:_SageMakerContainer._prepare_serving_volumes': 'self model_location',
    'image:_SageMakerContainer._create_docker_host': 'self host environment optml_subdirs command volumes',
    'image:_SageMakerContainer.serve': 'self model_dir environment',
    'local_session:LocalSagemakerClient.create_training_job': 'self TrainingJobName AlgorithmSpecification '
    'OutputDataConfig ResourceConfig',
    'local_session:LocalSagemakerClient.describe_training_job': 'self TrainingJobName',
    'local_session:LocalSagemakerClient.create_transform_job': 'self TransformJobName ModelName',
    'local_session:LocalSagemakerClient.describe_endpoint': 'self EndpointName',
    'local_session:LocalSagemakerClient.create_endpoint': 'self EndpointName EndpointConfigName Tags',
    'local_session:LocalSagemakerClient.delete_endpoint': 'self EndpointName',
    'local_session:LocalSagemakerRuntimeClient.invoke_endpoint': 'self Body EndpointName',
    'local_session:LocalSession.wait_for_endpoint': 'self endpoint poll live_logging',
}
CALLED = {
    'entities:_LocalEndpoint': 'endpoint_name endpoint_config_name tags local_session',
    'image:_HostingContainer.run': 'self',
    'entities:_LocalTrainingJob.start': 'self input_data_config output_data_config hyperparameters '
    'environment job_name',
    'image:_Volume': 'host_dir container_dir',
    'local_session:LocalSagemakerRuntimeClient': 'config',
    'local_session:LocalSession': 'boto_session',
}
# In another process, as local_mode has replaced them in this one.
PARAMETERS = """
import inspect, json, pkgutil, sys
names = json.loads(sys.argv[1])
found = [inspect.signature(pkgutil.resolve_name('sagemaker.local.' + name)) for name in names]
print('FOUND', json.dumps([list(signature.parameters) for signature in found]))
"""


def test_the_sdk_has_what_we_replace_and_the_page_names_it():
    names = PATCHED | CALLED
    done = python('-c', PARAMETERS, json.dumps([*names]))
    assert done.returncode == 0, done.stderr
    for (name, expected), found in zip(names.items(), json.loads(done.stdout.split('FOUND')[1])):
        assert ' '.join(found).startswith(expected), name
    assert not [name for name in PATCHED if not re.search(rf'\b{re.split("[:.]", name)[-1]}\b', PAGE)]


def test_chainer_has_the_methods_that_chainer_fast_replaces_and_the_page_lists_them():
    replaced = set()
    for owner, name, fast in chainer_fast.replacements:
        slow, fast = inspect.signature(getattr(owner, name).__wrapped__), inspect.signature(fast)
        given = [p for p in slow.parameters.values() if p.default is p.empty]
        fast.bind(*given)
        converter = owner is type(convert.concat_examples)
        replaced.add(('chainer.dataset.concat_examples' if converter else owner.__name__, name))
    table = PAGE.partition('| of | methods |')[2].partition('\n\n')[0]
    rows = [[re.findall('`([^`]+)`', cell) for cell in row.split('|')[1:3]] for row in table.splitlines()]
    assert {(owner, name) for row in rows if row for owner in row[0] for name in row[1]} == replaced


def test_the_tests_that_the_page_names_are_there():
    files = [path for folder in ('tests', 'container') for path in (ROOT / folder).rglob('test_*.py')]
    there = re.findall(r'^def (test_\w+)', '\n'.join(path.read_text() for path in files), re.MULTILINE)
    assert {*re.findall(r'`(test_\w+)`', PAGE)} <= {*there}
