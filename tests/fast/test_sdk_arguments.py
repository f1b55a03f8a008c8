"""docs/arguments.md says of each argument of the SDK what it does in local mode, and which test shows that.

python tests/fast/test_sdk_arguments.py writes that page.
"""

import inspect
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = ROOT / 'docs' / 'arguments.md'
HEAD = """# The SDK's arguments in local mode

A test compares this page with the signatures in the SDK (version 2), and writes it:
`python tests/fast/test_sdk_arguments.py`. Each argument does the `same` as on SageMaker, has `no effect` here, because
there is nothing on this machine that it could change, or because local mode always waits and shows the log (`wait`,
`logs`), or `raises` an error that says why. No argument silently does anything else. `git grep` finds a test by its
name.
"""
SAME, NONE, RAISES = 'same', 'no effect', 'raises'
# {what is called: {(effect, test): its arguments}}; a note on an argument is in brackets.
ARGUMENTS = {
    'Chainer(...)': {
        (
            SAME,
            'test_a_script_of_awss_in_a_subdirectory_without_mpi_on_two_hosts',
        ): 'entry_point source_dir dependencies '
        'environment hyperparameters use_mpi instance_count role image_uri sagemaker_session',
        (
            SAME,
            'test_each_host_gets_its_slots_the_mpi_options_and_the_environment',
        ): 'num_processes process_slots_per_host additional_mpi_options',
        (SAME, 'test_metrics_of_the_log_are_described'): 'metric_definitions',
        (SAME, 'test_an_instance_of_aws_is_not_started_and_that_is_said'): 'instance_type(`local`, `local_gpu`; an '
        '`ml.*` type also runs on this machine, and a line says so)',
        (SAME, 'test_each_local_output_has_its_jobs_name'): 'output_path',
        (SAME, 'test_max_run_stops_a_job_and_keeps_what_there_is'): 'max_run',
        (SAME, 'test_a_killed_job_goes_on_from_its_checkpoints'): 'checkpoint_s3_uri',
        (SAME, 'test_more_arguments_are_as_on_sagemaker'): 'checkpoint_local_path code_location model_uri '
        'model_channel_name base_job_name container_log_level',
        (SAME, 'test_a_model_that_is_not_packed_is_deployed'): 'disable_output_compression',
        (SAME, 'test_a_job_without_the_network'): 'enable_network_isolation(the job reaches this machine only)',
        (SAME, 'test_the_command_of_a_container_is_the_estimators'): 'container_entry_point container_arguments',
        (SAME, 'test_arguments_that_the_sdk_itself_handles'): 'git_config framework_version(ignored with `image_uri`) '
        'py_version(ignored with `image_uri`)',
        (RAISES, 'test_what_a_channel_cannot_do_is_refused'): 'input_mode(`Pipe`, `FastFile`; `File` is the same)',
        (RAISES, 'test_arguments_of_an_estimator_that_are_refused'): 'use_spot_instances rules '
        'tensorboard_output_config instance_groups',
        (
            NONE,
            'test_arguments_without_effect',
        ): 'keep_alive_period_in_seconds volume_size volume_kms_key output_kms_key '
        'tags subnets security_group_ids encrypt_inter_container_traffic max_wait debugger_hook_config profiler_config '
        'disable_profiler max_retry_attempts training_repository_access_mode '
        'training_repository_credentials_provider_arn '
        'enable_infra_check enable_remote_debug enable_session_tag_chaining training_plan instance_placement_config '
        'enable_sagemaker_metrics',
    },
    'estimator.fit(...)': {
        (SAME, 'test_channels_have_sagemakers_names'): 'inputs',
        (SAME, 'test_other_faults_of_a_job_are_refused'): 'job_name',
        (NONE, 'test_arguments_without_effect'): 'wait(`fit` always waits) logs(always shown) experiment_config',
    },
    'TrainingInput(...)': {
        (SAME, 'test_channels_have_sagemakers_names'): 's3_data s3_data_type(`S3Prefix`, `ManifestFile`; '
        '`AugmentedManifestFile` raises)',
        (SAME, 'test_more_arguments_are_as_on_sagemaker'): 'content_type',
        (RAISES, 'test_what_a_channel_cannot_do_is_refused'): 'distribution(except for `FullyReplicated`) compression '
        'record_wrapping instance_groups input_mode(except for `File`) attribute_names(with `AugmentedManifestFile`) '
        'target_attribute_name(with `AugmentedManifestFile`) hub_access_config model_access_config',
        (NONE, 'test_arguments_without_effect'): 'shuffle_config(as on SageMaker with `File`)',
    },
    'estimator.deploy(...)': {
        (SAME, 'test_an_answer_is_boto3s'): 'instance_type endpoint_name serializer deserializer',
        (SAME, 'test_arguments_of_deploy'): 'model_name container_startup_health_check_timeout',
        (SAME, 'test_requests_and_answers_are_captured'): 'data_capture_config',
        (RAISES, 'test_an_endpoint_has_one_instance'): 'initial_instance_count(except for 1)',
        (RAISES, 'test_what_an_endpoint_cannot_be_is_refused'): 'serverless_inference_config async_inference_config '
        'accelerator_type explainer_config use_compiled_model',
        (NONE, 'test_arguments_of_deploy'): 'wait(`deploy` always waits) kms_key tags volume_size '
        'model_data_download_timeout inference_recommendation_id(as there is an instance type)',
    },
    'estimator.transformer(...)': {
        (SAME, 'test_a_transform_filters_and_joins'): 'instance_type strategy assemble_with output_path accept',
        (SAME, 'test_arguments_of_a_transform'): 'env max_payload model_name model_server_workers entry_point role',
        (
            RAISES,
            'test_arguments_of_a_transform',
        ): 'enable_network_isolation(as on SageMaker, since the SDK leaves the code out of the model)',
        (NONE, 'test_arguments_of_a_transform'): 'instance_count(it is always one) output_kms_key volume_kms_key '
        'max_concurrent_transforms(it is always one) tags vpc_config_override',
    },
    'transformer.transform(...)': {
        (SAME, 'test_a_transform_keeps_names_and_takes_all_below_a_prefix'): 'data data_type content_type split_type',
        (SAME, 'test_a_transform_unpacks_gzip_and_names_the_file_that_it_cannot_read'): 'compression_type',
        (SAME, 'test_a_transform_filters_and_joins'): 'input_filter output_filter join_source',
        (SAME, 'test_arguments_of_a_transform'): 'job_name model_client_config(the timeout; nothing is tried again)',
        (RAISES, 'test_arguments_of_a_transform'): 'batch_data_capture_config',
        (NONE, 'test_arguments_of_a_transform'): 'wait(`transform` always waits) logs experiment_config',
    },
    'Predictor(...)': {
        (SAME, 'test_a_predictor_reads_pandas_and_streams'): 'endpoint_name sagemaker_session serializer deserializer',
        (RAISES, 'test_what_a_request_cannot_name_is_refused'): 'component_name',
    },
    'predictor.predict(...)': {
        (SAME, 'test_a_predictor_reads_pandas_and_streams'): 'data',
        (SAME, 'test_headers_of_a_request_reach_the_script'): 'initial_args custom_attributes',
        (SAME, 'test_requests_and_answers_are_captured'): 'inference_id',
        (RAISES, 'test_what_a_request_cannot_name_is_refused'): 'target_model target_variant(except for `AllTraffic`) '
        'component_name',
    },
}
ITEM = re.compile(r'(\w+)(?:\(([^)]*)\))?')


def page():
    """Return the text of docs/arguments.md."""
    lines = [HEAD]
    for call, effects in ARGUMENTS.items():
        lines += [f'\n## `{call}`\n\n| argument | effect | test |\n|---|---|---|\n']
        for (effect, test), arguments in effects.items():
            for name, note in ITEM.findall(arguments):
                lines.append(f'| `{name}` | {effect}{f": {note}" if note else ""} | `{test}` |\n')
    return ''.join(lines)


def parameters(call):
    """Return the names of the parameters in the SDK."""
    from sagemaker.chainer.estimator import Chainer
    from sagemaker.estimator import EstimatorBase, Framework
    from sagemaker.inputs import TrainingInput
    from sagemaker.predictor import Predictor
    from sagemaker.transformer import Transformer

    functions = {
        'Chainer(...)': [Chainer.__init__, Framework.__init__, EstimatorBase.__init__],
        'estimator.fit(...)': [Chainer.fit],
        'TrainingInput(...)': [TrainingInput.__init__],
        'estimator.deploy(...)': [EstimatorBase.deploy],
        'estimator.transformer(...)': [Framework.transformer],
        'transformer.transform(...)': [Transformer.transform],
        'Predictor(...)': [Predictor.__init__],
        'predictor.predict(...)': [Predictor.predict],
    }[call]
    every = [p for function in functions for p in inspect.signature(function).parameters.values()]
    return {p.name for p in every if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)} - {'self'}


@pytest.mark.parametrize('call', ARGUMENTS)
def test_the_page_has_each_argument_once(call):
    named = [name for arguments in ARGUMENTS[call].values() for name, _ in ITEM.findall(arguments)]
    assert sorted(named) == sorted(parameters(call))


def test_the_page_is_written():
    assert PAGE.read_text() == page()


def test_the_tests_on_the_page_use_the_arguments():
    """At least their file names them, or support.py, by which they make estimators."""
    sources = [path.read_text() for path in (ROOT / 'tests').rglob('test_*.py') if path.name != 'test_sdk_arguments.py']
    support = (ROOT / 'tests' / 'support.py').read_text()
    for effects in ARGUMENTS.values():
        for (_, test), arguments in effects.items():
            (source,) = [source for source in sources if f'def {test}(' in source]
            for name, _ in ITEM.findall(arguments):
                assert re.search(rf'\b{name}\b', source + support), (test, name)


if __name__ == '__main__':
    PAGE.write_text(page())
