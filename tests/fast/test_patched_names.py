"""The names that we patch in others' software still exist; docs/patches.md lists them and existing tests."""

import json
import re

import pytest
from support import ROOT, python

PAGE = (ROOT / 'docs' / 'patches.md').read_text()
JOB = 'self input_data_config output_data_config hyperparameters environment job_name'
CONTAINER, CLIENT = 'local.image:_SageMakerContainer', 'local.local_session:LocalSagemakerClient'
TRANSFORM = 'local.entities:_LocalTransformJob'
PATCHED = {  # in the SDK: the first parameters, on which we rely
    'estimator:_TrainingJob._add_spot_checkpoint_args': 'local_mode estimator train_args',
    'chainer.estimator:Chainer.hyperparameters': 'self',
    'estimator:_TrainingJob.start_new': 'estimator inputs experiment_config',
    'analytics:TrainingJobAnalytics._fetch_metric': 'self metric_name',
    'estimator:EstimatorBase.fit': 'self inputs wait logs',
    'utils:validate_sagemaker_config': 'sagemaker_config',
    CONTAINER + '.train': JOB,
    CONTAINER + '.process': 'self processing_inputs processing_output_config environment processing_job_name',
    CONTAINER + '.serve': 'self model_dir environment',
    CONTAINER + '.stop_serving': 'self',
    CONTAINER + '._prepare_serving_volumes': 'self model_location',
    CONTAINER + '._upload_processing_outputs': 'self data_dir processing_output_config',
    'session:Session.logs_for_transform_job': 'self job_name wait poll',
    TRANSFORM + '.start': 'self input_data output_data transform_resources kwargs',
    CLIENT + '.create_training_job': 'self TrainingJobName AlgorithmSpecification '
    'OutputDataConfig ResourceConfig InputDataConfig Environment kwargs',
    CLIENT + '.create_processing_job': 'self ProcessingJobName AppSpecification '
    'ProcessingResources Environment ProcessingInputs ProcessingOutputConfig kwargs',
    CLIENT + '.describe_training_job': 'self TrainingJobName',
    CLIENT + '.create_transform_job': 'self TransformJobName ModelName '
    'TransformInput TransformOutput TransformResources kwargs',
    CLIENT + '.create_model': 'self ModelName PrimaryContainer',
    CLIENT + '.create_endpoint_config': 'self EndpointConfigName ProductionVariants Tags',
    CLIENT + '.describe_endpoint': 'self EndpointName',
    CLIENT + '.create_endpoint': 'self EndpointName EndpointConfigName Tags',
    CLIENT + '.delete_endpoint': 'self EndpointName',
    'local.local_session:LocalSagemakerRuntimeClient.invoke_endpoint': 'self Body EndpointName ContentType '
    'Accept CustomAttributes TargetModel TargetVariant InferenceId',
    'local.local_session:LocalSession.wait_for_endpoint': 'self endpoint poll live_logging',
    'session:Session.wait_for_job': 'self job poll',
    'session:Session.wait_for_transform_job': 'self job poll',
    'session:Session.wait_for_tuning_job': 'self job poll',
}
VOLUMES = 'self data_dir'
CALLED = {
    CONTAINER: 'instance_type instance_count image sagemaker_session container_entrypoint container_arguments',
    CONTAINER + '._prepare_training_volumes': f'{VOLUMES} input_data_config output_data_config hyperparameters',
    CONTAINER + '._prepare_processing_volumes': f'{VOLUMES} processing_inputs processing_output_config',
    CONTAINER + '._update_local_src_path': 'self params key',
    CONTAINER + '.write_config_files': 'self host hyperparameters input_data_config',
    CONTAINER + '.write_processing_config_files': 'self host environment processing_inputs '
    'processing_output_config processing_job_name',
    'local.entities:move_to_destination': 'source destination job_name sagemaker_session prefix',
    CONTAINER + '._create_tmp_folder': 'self',
    'local.image:_create_config_file_directories': 'root host',
    'local.image:_create_processing_config_file_directories': 'root host',
    'local.image:_aws_credentials': 'session',
    'local.image:_Volume': 'host_dir container_dir',
    'local.entities:_LocalEndpoint': 'endpoint_name endpoint_config_name tags local_session',
    'local.entities:_LocalTrainingJob.start': JOB,
    TRANSFORM + '._get_container_environment': 'self kwargs',
    'local.local_session:LocalSagemakerRuntimeClient': 'config',
    'local.local_session:LocalSession': 'boto_session',
}
# In another process, as a session of ours may have replaced them in this one.
PARAMETERS = """
import inspect, json, pkgutil, sys
names = json.loads(sys.argv[1])
found = [inspect.signature(pkgutil.resolve_name('sagemaker.' + name)) for name in names]
print('FOUND', json.dumps([list(signature.parameters) for signature in found]))
"""


@pytest.mark.slow  # imports the SDK anew
def test_the_sdk_has_what_we_replace_and_the_page_names_it():
    names = PATCHED | CALLED
    done = python('-c', PARAMETERS, json.dumps([*names]))
    assert done.returncode == 0, done.stderr
    for (name, expected), found in zip(names.items(), json.loads(done.stdout.split('FOUND')[1])):
        assert ' '.join(found).startswith(expected), name
    assert not [name for name in PATCHED if not re.search(rf'\b{re.split("[:.]", name)[-1]}\b', PAGE)]


def test_the_tests_that_the_page_names_are_there():
    files = [path for folder in ('tests', 'container') for path in (ROOT / folder).rglob('test_*.py')]
    there = re.findall(r'^def (test_\w+)', '\n'.join(path.read_text() for path in files), re.MULTILINE)
    assert {*re.findall(r'`(test_\w+)`', PAGE)} <= {*there}
