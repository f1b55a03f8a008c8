"""Jobs and endpoints do what SageMaker does, or say that they cannot: docs/arguments.md lists these tests."""

import gzip
import json
import os
import pathlib
import shutil
import threading

import numpy as np
import pytest
from botocore.exceptions import ClientError
from local_mode import EndpointError, JobError
from sagemaker.async_inference import AsyncInferenceConfig
from sagemaker.chainer.estimator import Chainer
from sagemaker.debugger import ProfilerRule, TensorBoardOutputConfig, rule_configs
from sagemaker.deserializers import JSONDeserializer, PandasDeserializer
from sagemaker.exceptions import UnexpectedStatusException
from sagemaker.explainer import ClarifyExplainerConfig, ClarifyShapBaselineConfig, ClarifyShapConfig, ExplainerConfig
from sagemaker.inputs import BatchDataCaptureConfig, FileSystemInput, ShuffleConfig, TrainingInput
from sagemaker.instance_group import InstanceGroup
from sagemaker.model_monitor import DataCaptureConfig
from sagemaker.predictor import Predictor
from sagemaker.s3 import S3Downloader, S3Uploader
from sagemaker.serializers import CSVSerializer, JSONSerializer
from sagemaker.serverless import ServerlessInferenceConfig
from sagemaker.transformer import Transformer
from sagemaker.tuner import CategoricalParameter, ContinuousParameter, HyperparameterTuner, IntegerParameter
from support import CSV, JSON, containers, free_port, make_estimator, make_model, open_tar, run, wait_for

# Trains nothing; its model doubles.
SCRIPT = """
import argparse, os, sys, time
import numpy as np

def model_fn(model_dir):
    return lambda rows: 2 * rows

if __name__ == '__main__':
    parser = argparse.ArgumentParser()
    parser.add_argument('--rate', type=float, default=0)
    parser.add_argument('--kind', default='a')
    parser.add_argument('--then', default='')
    args, _ = parser.parse_known_args()
    for step in 1, 2:
        print(f'step {step}: loss={args.rate / step:.3f} accuracy=none;')
    for root, _, names in os.walk('/opt/ml/input/data'):
        print(*(os.path.join(root, name) for name in names))
    print('stdin', repr(sys.stdin.read()))
    if args.then:
        exec(args.then)
    with open(os.path.join(os.environ['SM_MODEL_DIR'], 'name'), 'w') as f:
        f.write(os.environ.get('NAME', ''))
"""
CLARIFY = ClarifyExplainerConfig(ClarifyShapConfig(ClarifyShapBaselineConfig(shap_baseline='1')))
LOSS = [{'Name': 'loss', 'Regex': r'loss=([0-9.]+)'}, {'Name': 'accuracy', 'Regex': r'accuracy=(\w+)'}]


@pytest.fixture(scope='module')
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp('script') / 'script.py'
    path.write_text(SCRIPT)
    return path


@pytest.fixture(scope='module')
def bucket(session):
    return f's3://{session.default_bucket()}'


@pytest.fixture
def put(session, bucket):
    """Return a function that writes {key: content} below a prefix and returns its URI."""

    def put(prefix, contents):
        for key, content in contents.items():
            S3Uploader.upload_string_as_file_body(content, f'{bucket}/{prefix}/{key}', sagemaker_session=session)
        return f'{bucket}/{prefix}'

    return put


@pytest.fixture(scope='module')
def trained(session, script):
    estimator = make_estimator(session, script)
    estimator.fit()
    return estimator


@pytest.fixture
def deployed(trained, session):
    """Return a function that deploys, with JSON both ways; the endpoints go at the end."""
    predictors = []

    def deploy(**options):
        given = dict(serializer=JSONSerializer(), deserializer=JSONDeserializer()) | options
        session.set_serving_port(free_port())
        predictors.append(trained.deploy(1, 'local', **given))
        return predictors[-1]

    yield deploy
    for predictor in predictors:
        predictor.delete_endpoint()


def test_metrics_of_the_log_are_described(session, script):
    estimator = make_estimator(session, script, dict(metric_definitions=LOSS), rate=0.5)
    estimator.fit()
    described = estimator.latest_training_job.describe()
    (final,) = described['FinalMetricDataList']
    assert (final['MetricName'], final['Value']) == ('loss', 0.25)
    frame = estimator.training_job_analytics.dataframe()
    assert frame['metric_name'].tolist() == ['loss', 'loss'] and frame['value'].tolist() == [0.5, 0.25]


def test_a_metric_with_an_invalid_regular_expression_is_named(session, script):
    before = os.listdir(session.directory)
    estimator = make_estimator(session, script, dict(metric_definitions=[dict(Name='loss', Regex='loss (')]))
    with pytest.raises(ValueError, match='of the metric loss is invalid, .*metric_definitions'):
        estimator.fit()
    assert os.listdir(session.directory) == before


def test_a_job_is_described_as_on_sagemaker(trained):
    described = trained.latest_training_job.describe()
    assert (described['TrainingJobStatus'], described['SecondaryStatus']) == ('Completed', 'Completed')
    times = [described[name] for name in ('CreationTime', 'TrainingStartTime', 'TrainingEndTime', 'LastModifiedTime')]
    assert times == sorted(times)
    assert described['AlgorithmSpecification']['TrainingInputMode'] == 'File'
    assert described['ResourceConfig']['InstanceType'] == 'local'


def test_a_failed_job_is_known_and_raises_sagemakers_exception(session, script):
    estimator = make_estimator(session, script, then='raise ArithmeticError("the reason")')
    with pytest.raises(UnexpectedStatusException, match='the reason') as error:
        estimator.fit()
    assert isinstance(error.value, JobError) and error.value.actual_status == 'Failed'
    described = estimator.latest_training_job.describe()
    assert (described['TrainingJobStatus'], described['SecondaryStatus']) == ('Failed', 'Failed')
    assert 'the reason' in described['FailureReason'] and described['TrainingEndTime']
    with pytest.raises(ValueError, match='no model_data, which local mode needs; a training job that failed'):
        estimator.deploy(1, 'local')
    with pytest.raises(UnexpectedStatusException, match='the reason'):
        Chainer.attach(estimator.latest_training_job.name, session)


def test_a_job_is_stopped_and_listed(session, script):
    estimator = make_estimator(session, script, then='open("/opt/ml/model/so-far", "w"); time.sleep(100)')
    fit = threading.Thread(target=estimator.fit, kwargs=dict(job_name='stopped-one'))
    fit.start()
    wait_for(lambda: containers(session))
    estimator.latest_training_job.stop()
    fit.join(60)
    described = estimator.latest_training_job.describe()
    assert described['TrainingJobStatus'] == 'Stopped' and containers(session) == []
    estimator.latest_training_job.stop()  # again
    jobs = session.sagemaker_client.list_training_jobs(NameContains='stopped', StatusEquals='Stopped')
    (job,) = jobs['TrainingJobSummaries']
    assert (job['TrainingJobName'], job['TrainingJobStatus']) == ('stopped-one', 'Stopped') and job['CreationTime']


def tune(session, script, ranges, **options):
    estimator = make_estimator(session, script, dict(metric_definitions=LOSS))
    return HyperparameterTuner(estimator, 'loss', ranges, LOSS, objective_type='Minimize', **options)


def test_a_tuner_draws_at_random_and_finds_the_best(session, script):
    ranges = {'rate': ContinuousParameter(0.01, 1, 'Logarithmic'), 'size': IntegerParameter(1, 9)}
    tuner = tune(session, script, ranges, max_jobs=3, strategy='Random', random_seed=1)
    tuner.fit()
    frame = tuner.analytics().dataframe()
    assert len(frame) == 3 and (frame['TrainingJobStatus'] == 'Completed').all()
    best = frame.loc[frame['FinalObjectiveValue'].idxmin()]
    assert tuner.best_training_job() == best['TrainingJobName']
    assert abs(best['FinalObjectiveValue'] - best['rate'] / 2) < 1e-3
    attached = HyperparameterTuner.attach(tuner.latest_tuning_job.name, session)
    assert attached.best_training_job() == best['TrainingJobName']
    estimator = tuner.best_estimator()
    assert float(json.loads(estimator.hyperparameters()['rate'])) == best['rate']
    with open_tar(session, estimator.model_data) as tar:
        assert tar.getnames() == ['name']


def test_a_tuner_goes_through_a_grid_and_past_failures(session, script):
    ranges = {'kind': CategoricalParameter(['a', 'b']), 'then': CategoricalParameter(['', '1 / 0'])}
    tuner = tune(session, script, ranges, max_jobs=10, strategy='Grid')
    tuner.fit(job_name='grid')
    frame = tuner.analytics().dataframe()
    assert frame['TrainingJobStatus'].tolist() == ['Completed', 'Failed'] * 2
    tuner = tune(session, script, {'then': CategoricalParameter(['1 / 0'])}, max_jobs=1, strategy='Grid')
    with pytest.raises(ClientError, match='ResourceInUse'):
        tuner.fit(job_name='grid')
    with pytest.raises(JobError, match='No job of tuning job fails has succeeded'):
        tuner.fit(job_name='fails')


def test_each_local_output_has_its_jobs_name(session, script, tmp_path):
    models = []
    for name in 'one', 'two':
        options = dict(output_path=f'file://{tmp_path}/my out', environment={'NAME': name})
        estimator = make_estimator(session, script, options)
        estimator.fit()
        models.append(estimator.model_data)
    for name, model in zip(('one', 'two'), models):
        with open_tar(session, model) as tar:
            assert tar.extractfile('name').read().decode() == name
    newest = tmp_path / 'my out' / 'model.tar.gz'  # where the SDK writes it
    assert newest.read_bytes() == pathlib.Path(models[1].removeprefix('file://')).read_bytes()


@pytest.mark.parametrize('where', ['s3', 'file'])
def test_a_model_that_is_not_packed_is_deployed(session, script, bucket, tmp_path, where):
    output = {'s3': f'{bucket}/plain', 'file': f'file://{tmp_path}'}[where]
    options = dict(disable_output_compression=True, output_path=output, environment={'NAME': 'plain'})
    estimator = make_estimator(session, script, options)
    estimator.fit()
    uri = estimator.model_data['S3DataSource']['S3Uri']
    assert uri == f'{output}/{estimator.latest_training_job.name}/output/model/'
    session.set_serving_port(free_port())
    predictor = estimator.deploy(1, 'local')
    try:
        assert predictor.predict(np.ones((1, 2), np.float32)).tolist() == [[2, 2]]
    finally:
        predictor.delete_endpoint()


def test_an_instance_of_aws_is_not_started_and_that_is_said(session, script, capsys):
    for _ in 1, 2:
        make_estimator(session, script, dict(instance_type='ml.m5.large')).fit()
    assert capsys.readouterr().out.count('ml.m5.large is not started: sessions of local mode run jobs') == 1


def test_what_pip_says_is_the_reason(session, script, tmp_path):
    (tmp_path / 'script.py').write_text(SCRIPT)
    for wanted, why in ('no-such-package-of-anybody', 'No matching distribution'), ('chainer==5.0.0', 'leave them out'):
        (tmp_path / 'requirements.txt').write_text(wanted)
        with pytest.raises(JobError, match=f'(?s){wanted}.*{why}|{why}.*{wanted}'):
            make_estimator(session, 'script.py', dict(source_dir=str(tmp_path), dependencies=[])).fit()


def test_too_little_shared_memory_is_said(session, script):
    fill = 'import mmap; f = open("/dev/shm/all", "wb+"); f.truncate(1 << 27); m = mmap.mmap(f.fileno(), 1 << 27)'
    estimator = make_estimator(session, script, then=fill + '; m.write(b"1" * (1 << 27))')
    with pytest.raises(JobError, match='SIGBUS, most likely because /dev/shm is too small'):
        estimator.fit()
    session.config = {'local': {**session.config['local'], 'container_config': {'shm_size': '256m'}}}
    try:
        estimator.fit()
    finally:
        del session.config['local']['container_config']


def test_a_script_that_reads_stdin_goes_on(session, script, capsys):
    make_estimator(session, script).fit()
    assert "stdin ''" in capsys.readouterr().out


def test_channels_have_sagemakers_names(session, script, put, capsys):
    data = put('chan', {'train-data.csv': 'a', 'train/in.csv': 'b'})
    manifest = put('man', {'all': json.dumps([{'prefix': data + '/'}, 'train/in.csv'])}) + '/all'
    channels = {'train': data + '/train', 'named': TrainingInput(s3_data=manifest, s3_data_type='ManifestFile')}
    make_estimator(session, script).fit(channels)
    out = capsys.readouterr().out
    for name in 'train/train-data.csv', 'train/in.csv', 'named/train/in.csv':
        assert f'/opt/ml/input/data/{name}' in out, out


def test_local_channels_may_have_any_name(session, script, tmp_path, capsys):
    for name in 'my dàta', 'a:b':
        (tmp_path / name).mkdir()
        (tmp_path / name / 'in.csv').write_text('a')
        (tmp_path / name / 'other.csv').write_text('a')
    uris = {'one': (tmp_path / 'my dàta').as_uri(), 'two': f'file://{tmp_path}/a:b/in.csv'}
    kept = (tmp_path / 'a:b').as_uri()
    make_estimator(session, script, dict(checkpoint_s3_uri=kept)).fit(uris)
    out = capsys.readouterr().out
    assert '/one/in.csv' in out and '/two/in.csv' in out and '/two/other.csv' not in out


REFUSED = {
    'augmented manifest': (
        dict(s3_data_type='AugmentedManifestFile', attribute_names=['a'], target_attribute_name='a'),
        'has no AugmentedManifest',
    ),
    'Pipe': (dict(input_mode='Pipe'), "input_mode='File'"),
    'FastFile': (dict(input_mode='FastFile'), "input_mode='File'"),
    'compression': (dict(compression='Gzip'), 'no CompressionType'),
    'sharded': (dict(distribution='ShardedByS3Key'), 'DataDistribution'),
    'wrapped': (dict(record_wrapping='RecordIO'), 'has no RecordWrapperType'),
    'from a hub': (
        dict(hub_access_config={'HubContentArn': 'arn:aws:sagemaker:us-east-1:123456789012:hub-content/a/b/c/1.0.0'}),
        'has no HubAccessConfig',
    ),
    'by a licence': (dict(model_access_config={'AcceptEula': True}), 'has no ModelAccessConfig'),
    'for a group': (dict(instance_groups=['a']), 'has no InstanceGroupNames'),
}


@pytest.mark.parametrize('what', REFUSED)
def test_what_a_channel_cannot_do_is_refused(session, script, put, what):
    options, why = REFUSED[what]
    data = TrainingInput(put('refused', {'a': 'a'}), **options)
    with pytest.raises((ValueError, RuntimeError), match=why):
        make_estimator(session, script).fit({'train': data})


def test_other_faults_of_a_job_are_refused(session, script, put, bucket):
    data = put('named', {'a': 'a'})
    estimator = make_estimator(session, script)
    with pytest.raises(ClientError, match="'my chan' at 'inputDataConfig.1.member.channelName'"):
        estimator.fit({'my chan': data})
    with pytest.raises(ClientError, match="'my job' at 'trainingJobName'"):
        estimator.fit(job_name='my job')
    assert estimator.latest_training_job is None
    estimator.fit(job_name='used-once')
    with pytest.raises(ClientError, match='ResourceInUse'):
        estimator.fit(job_name='used-once')
    with pytest.raises(ValueError, match='no FileSystemDataSource'):
        estimator.fit(FileSystemInput('fs-12345678', 'EFS', '/a'))
    with pytest.raises(JobError, match=f'No S3 objects found under S3 URL "{bucket}/nothing"'):
        estimator.fit(f'{bucket}/nothing')
    with pytest.raises(JobError, match='s3://.*/none.tar.gz'):
        make_estimator(session, 'script.py', dict(source_dir=f'{bucket}/none.tar.gz', dependencies=[])).fit()


def transform(trained, data, out, arguments, **options):
    """Transform; return {name below output_path: text}."""
    transformer = trained.transformer(1, 'local', output_path=out, **options)
    transformer.transform(data, **arguments)
    session = trained.sagemaker_session
    return {
        uri.removeprefix(out + '/'): S3Downloader.read_file(uri, session) for uri in S3Downloader.list(out, session)
    }


def test_a_transform_keeps_names_and_takes_all_below_a_prefix(trained, put, bucket, session):
    session.set_serving_port(free_port())
    data = put('t1/in', {'a.csv': '1,2\n3,4\n', 'sub/b.csv': '5,6\n'})
    given = dict(content_type=CSV, split_type='Line')
    done = transform(trained, data, f'{bucket}/t1/out', given, accept=CSV, assemble_with='Line')
    assert {name: text.split() for name, text in done.items()} == {
        'a.csv.out': ['2.0,4.0', '6.0,8.0'], 'sub/b.csv.out': ['10.0,12.0']
    }  # fmt: skip
    manifest = put('t1', {'m': json.dumps([{'prefix': data + '/'}, 'sub/b.csv'])}) + '/m'
    done = transform(
        trained, manifest, f'{bucket}/t1/named', dict(data_type='ManifestFile', content_type=CSV), accept=CSV
    )
    assert [*done] == ['sub/b.csv.out']


def test_a_transform_filters_and_joins(trained, put, bucket, session):
    session.set_serving_port(free_port())
    data = put('t2/in', {'a.csv': 'id1,1,2\nid2,3,4\n'})
    given = dict(
        content_type=CSV, split_type='Line', input_filter='$[1:]', join_source='Input', output_filter='$[0,-1]'
    )
    options = dict(accept=CSV, assemble_with='Line', strategy='MultiRecord')
    done = transform(trained, data, f'{bucket}/t2/out', given, **options)
    assert done['a.csv.out'] == 'id1,4.0\nid2,8.0\n'


def test_a_transform_unpacks_gzip_and_names_the_file_that_it_cannot_read(trained, put, bucket, session):
    session.set_serving_port(free_port())
    data = put('t3/in', {'a.csv.gz': gzip.compress(b'1,2\n')})
    given = dict(content_type=CSV, compression_type='Gzip')
    assert transform(trained, data, f'{bucket}/t3/out', given, accept=CSV)['a.csv.gz.out'].strip() == '2.0,4.0'
    data = put('t3/latin', {'b.csv': 'é,1\n'.encode('latin-1'), 'c.csv': 'e,1,2\n'})
    with pytest.raises(JobError, match='b.csv'):
        transform(trained, data, f'{bucket}/t3/rest', dict(content_type=CSV, input_filter='$[1:]', split_type='Line'))
    assert S3Downloader.list(f'{bucket}/t3/rest', session) == [f'{bucket}/t3/rest/c.csv.out']  # the other goes on
    with pytest.raises(JobError, match='No S3 objects found'):
        transform(trained, f'{bucket}/t3/none', f'{bucket}/t3/out', dict(content_type=CSV))


def test_a_transform_is_attached_to_without_waiting(trained, put, bucket, session):
    session.set_serving_port(free_port())
    transformer = trained.transformer(1, 'local', output_path=f'{bucket}/t4/out', accept=JSON)
    transformer.transform(put('t4/in', {'a.csv': '1,2'}), content_type=CSV)
    again = Transformer.attach(transformer.latest_transform_job.name, session)
    again.wait()
    assert again.output_path == transformer.output_path


def test_an_answer_is_boto3s(deployed, session):
    predictor = deployed()
    client = session.sagemaker_runtime_client
    answer = client.invoke_endpoint(
        EndpointName=predictor.endpoint_name, Body=b'[[1, 2]]', ContentType=JSON, Accept='*/*'
    )
    assert {*answer} == {'ResponseMetadata', 'Body', 'ContentType', 'InvokedProductionVariant'}
    assert answer['ResponseMetadata']['HTTPStatusCode'] == 200 and answer['ResponseMetadata']['RequestId']
    assert answer['ContentType'] == JSON and answer['InvokedProductionVariant'] == 'AllTraffic'
    assert json.loads(b''.join(answer['Body'].iter_lines())) == [[2, 4]]


def test_a_predictor_reads_pandas_and_streams(deployed):
    predictor = deployed()
    frames = Predictor(predictor.endpoint_name, predictor.sagemaker_session, CSVSerializer(), PandasDeserializer())
    assert frames.predict([[1, 2], [3, 4]]).values.tolist() == [[2, 4], [6, 8]]
    assert json.loads(b''.join(predictor.predict_stream([[1, 2]]))) == [[2, 4]]


def test_requests_and_answers_are_captured(deployed, bucket, session):
    where = f'{bucket}/captured'
    predictor = deployed(data_capture_config=DataCaptureConfig(True, 100, where, sagemaker_session=session))
    predictor.predict([[1, 2]], inference_id='seven')
    (uri,) = S3Downloader.list(where, session)
    assert uri.startswith(f'{where}/{predictor.endpoint_name}/AllTraffic/') and uri.endswith('.jsonl')
    line = json.loads(S3Downloader.read_file(uri, session))
    assert line['eventMetadata']['inferenceId'] == 'seven'
    data = line['captureData']
    assert json.loads(data['endpointInput']['data']) == [[1, 2]] and data['endpointInput']['encoding'] == 'JSON'
    assert json.loads(data['endpointOutput']['data']) == [[2, 4]]


def test_endpoints_are_listed(deployed, session):
    name = deployed().endpoint_name
    (found,) = session.sagemaker_client.list_endpoints(NameContains=name)['Endpoints']
    assert found == {'EndpointName': name, 'EndpointStatus': 'InService'}


@pytest.mark.parametrize(
    'options, what',
    [
        (dict(serverless_inference_config=ServerlessInferenceConfig()), 'ServerlessConfig'),
        (dict(async_inference_config=AsyncInferenceConfig(output_path='s3://b/a')), 'AsyncInferenceConfig'),
        (dict(accelerator_type='local_sagemaker_notebook'), 'AcceleratorType|accelerator'),
        (dict(explainer_config=ExplainerConfig(CLARIFY)), 'ExplainerConfig'),
        (dict(use_compiled_model=True), 'compile|compilation'),
    ],
)
def test_what_an_endpoint_cannot_be_is_refused(trained, options, what):
    with pytest.raises((ValueError, AttributeError, ClientError), match=f'(?i){what}'):
        trained.deploy(1, 'local', **options)


def test_what_needs_sagemaker_itself_says_so(trained, session, bucket):
    with pytest.raises(AttributeError, match=r'Local mode has no \w+model_package\w+: that needs SageMaker itself'):
        trained.create_model().register([CSV], [CSV], ['ml.m5.large'], ['ml.m5.large'], model_package_group_name='a')
    with pytest.raises(AttributeError, match='Local mode has no list_monitoring_schedules'):
        Predictor('any', session).list_monitors()


def test_a_model_that_is_not_there_is_named(session, script, bucket):
    with pytest.raises(EndpointError, match=f'{bucket}/none/model.tar.gz'):
        make_model(session, f'{bucket}/none/model.tar.gz', script).deploy(1, 'local')


def test_arguments_of_an_estimator_that_are_refused(session, script):
    tensorboard = TensorBoardOutputConfig('s3://b/a')
    for options, why in (
        (dict(tensorboard_output_config=tensorboard), 'has no TensorBoardOutputConfig'),
        (dict(rules=[ProfilerRule.sagemaker(rule_configs.ProfilerReport())]), 'has no ProfilerRuleConfigurations'),
        (dict(use_spot_instances=True, max_wait=90000), 'spot'),
        (
            dict(instance_groups=[InstanceGroup('a', 'local', 1)], instance_count=None, instance_type=None),
            'heterogeneous',
        ),
    ):
        with pytest.raises((ValueError, RuntimeError), match=f'(?i){why}'):
            make_estimator(session, script, options).fit()


def test_arguments_without_effect(session, script, put):
    options = dict(
        keep_alive_period_in_seconds=60,
        volume_size=5,
        volume_kms_key='k',
        output_kms_key='k',
        tags=[dict(Key='a', Value='b')],
        subnets=['subnet-1'],
        security_group_ids=['sg-1'],
        encrypt_inter_container_traffic=True,
        max_wait=90000,
        debugger_hook_config=False,
        profiler_config=None,
        disable_profiler=True,
        max_retry_attempts=3,
        training_repository_access_mode='Vpc',
        training_repository_credentials_provider_arn='arn:aws:lambda:us-east-1:123456789012:function:a',
        enable_infra_check=True,
        enable_remote_debug=True,
        enable_session_tag_chaining=True,
        enable_sagemaker_metrics=True,
        training_plan='arn:aws:sagemaker:us-east-1:123456789012:training-plan/a',
        instance_placement_config=None,
    )
    estimator = make_estimator(session, script, options)
    experiment = {'ExperimentName': 'a', 'TrialName': 'b', 'TrialComponentDisplayName': 'c'}
    data = TrainingInput(put('none', {'a': 'a'}), shuffle_config=ShuffleConfig(1))
    estimator.fit({'train': data}, wait=False, logs=False, experiment_config=experiment)
    assert estimator.latest_training_job.describe()['TrainingJobStatus'] == 'Completed'


def test_more_arguments_are_as_on_sagemaker(session, script, put, bucket, capsys):
    before = put('before', {'model.tar.gz': 'a'}) + '/model.tar.gz'
    options = dict(
        checkpoint_s3_uri=f'{bucket}/kept', checkpoint_local_path='/opt/ml/kept', code_location=f'{bucket}/code',
        model_uri=before, model_channel_name='old', base_job_name='base', container_log_level=40,
    )  # fmt: skip
    then = 'print(open("/opt/ml/input/config/inputdataconfig.json").read()); open("/opt/ml/kept/a", "w")'
    estimator = make_estimator(session, script, options, then=then)
    estimator.fit({'train': TrainingInput(put('typed', {'a': 'a'}), content_type='text/x-mine')})
    out, name = capsys.readouterr().out, estimator.latest_training_job.name
    assert name.startswith('base-') and '/opt/ml/input/data/old/model.tar.gz' in out
    assert 'text/x-mine' in out and 'INFO' not in out
    assert S3Downloader.list(f'{bucket}/code/{name}', session) and S3Downloader.list(f'{bucket}/kept', session)


def test_a_job_without_the_network(session, script, wrapped_docker, tmp_path):
    wrapped_docker('echo "$@" >> $here/commands')
    estimator = make_estimator(session, script, dict(enable_network_isolation=True))
    estimator.fit()
    assert 'network create --internal' in (tmp_path / 'commands').read_text()


def test_the_command_of_a_container_is_the_estimators(session, script, capsys):
    options = dict(container_entry_point=['sh', '-c'], container_arguments=['echo the command'])
    make_estimator(session, script, options).fit()
    assert 'the command' in capsys.readouterr().out


def test_arguments_that_the_sdk_itself_handles(session, script, tmp_path, monkeypatch):
    shutil.copy(script, tmp_path)
    git = 'git -c user.name=a -c user.email=a@b'
    run('sh', '-c', f'cd {tmp_path} && git init -q -b main && git add . && {git} commit -qm all', check=True)
    # As if the repository were on a server.
    monkeypatch.setenv('GIT_CONFIG_COUNT', '1')
    monkeypatch.setenv('GIT_CONFIG_KEY_0', f'url.{tmp_path}.insteadOf')
    monkeypatch.setenv('GIT_CONFIG_VALUE_0', 'https://example.com/a/b.git')
    options = dict(git_config={'repo': 'https://example.com/a/b.git', 'branch': 'main'}, dependencies=[])
    options.update(framework_version='5.0.0', py_version='py3')
    make_estimator(session, 'script.py', options).fit()


def test_arguments_of_deploy(trained, session, monkeypatch):
    session.set_serving_port(free_port())
    without = dict(wait=False, kms_key='k', tags=[dict(Key='a', Value='b')], volume_size=9)
    without.update(model_data_download_timeout=99, inference_recommendation_id='a/b')
    monkeypatch.setattr('local_mode.clients.START', 0.01)
    predictor = trained.deploy(1, 'local', model_name='my-model', container_startup_health_check_timeout=60, **without)
    assert predictor.predict(np.ones((1, 2), np.float32)).tolist() == [[2, 2]]
    assert session.sagemaker_client.describe_model('my-model')['ModelName'] == 'my-model'
    predictor.delete_endpoint()
    with pytest.raises(EndpointError, match='did not answer within 0.01 s'):
        trained.deploy(1, 'local')


def test_arguments_of_a_transform(trained, put, bucket, session, script, capsys):
    session.set_serving_port(free_port())
    without = dict(output_kms_key='k', volume_kms_key='k', max_concurrent_transforms=4, tags=[dict(Key='a', Value='b')])
    without['vpc_config_override'] = {'Subnets': ['subnet-1'], 'SecurityGroupIds': ['sg-1']}
    same = dict(env={'SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT': CSV}, max_payload=1, model_name='for-transform')
    same.update(model_server_workers=1, entry_point=str(script), role='arn:aws:iam::123456789012:role/b')
    transformer = trained.transformer(2, 'local', output_path=f'{bucket}/t5/out', **same, **without)
    data = put('t5/in', {'a.csv': '1,2'})
    given = dict(job_name='my-transform', wait=False, logs=False, experiment_config={'ExperimentName': 'a'})
    given['model_client_config'] = {'InvocationsTimeoutInSeconds': 30, 'InvocationsMaxRetries': 1}
    transformer.transform(data, content_type=CSV, **given)
    assert transformer.latest_transform_job.name == 'my-transform'
    described = session.sagemaker_client.describe_transform_job('my-transform')
    assert (described['TransformJobStatus'], described['MaxPayloadInMB']) == ('Completed', 1)
    assert described['ModelClientConfig'] == given['model_client_config']
    assert S3Downloader.read_file(f'{bucket}/t5/out/a.csv.out', session).strip() == '2.0,4.0'
    alone = trained.transformer(1, 'local', enable_network_isolation=True)
    with pytest.raises(JobError, match='/opt/ml/model/code'):
        alone.transform(data, content_type=CSV)
    assert 'reaches the network, in spite of enable_network_isolation' in capsys.readouterr().out
    big = put('t5/big', {'a.csv': '1,2\n' * 300000})
    with pytest.raises(JobError, match='a.csv: A record has 1200000 bytes, more than max_payload'):
        transformer.transform(big, content_type=CSV, job_name='too-big')
    described = session.sagemaker_client.describe_transform_job('too-big')
    assert described['TransformJobStatus'] == 'Failed' and 'max_payload' in described['FailureReason']
    with pytest.raises(ValueError, match='no batch_data_capture_config'):
        transformer.transform(data, content_type=CSV, batch_data_capture_config=BatchDataCaptureConfig('s3://b/a'))


def test_what_a_request_cannot_name_is_refused(deployed, session):
    predictor = deployed()
    for given, what in (
        (dict(target_model='a'), 'TargetModel'),
        (dict(target_variant='other'), 'TargetVariant'),
        (dict(component_name='a'), 'InferenceComponentName'),
    ):
        with pytest.raises(ClientError, match=f'ValidationError.*has no .*{what}'):
            predictor.predict([[1, 2]], **given)
    assert predictor.predict([[1, 2]], target_variant='AllTraffic') == [[2, 4]]
    with pytest.raises(ClientError, match='InferenceComponentName'):
        Predictor(predictor.endpoint_name, session, component_name='a').predict(b'1')


def test_data_of_a_local_disk_and_no_output_path(session, script, tmp_path):
    """With the SDK's local_code neither S3 nor an output path is needed."""
    session.config = {'local': {**session.config['local'], 'local_code': True}}
    try:
        estimator = make_estimator(session, script, dict(output_path=None))
        estimator.fit(f'file://{tmp_path}')
        with open_tar(session, estimator.model_data) as tar:
            assert tar.getnames() == ['name']
    finally:
        session.config['local']['local_code'] = False
