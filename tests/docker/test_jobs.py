"""Jobs support checkpoints, limits, batch transform and other features of AWS's estimator."""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import re
import resource
import shutil
import time

import local_mode.s3
import numpy as np
import pytest
from local_mode.errors import EndpointError, EngineError, JobError
from local_mode.s3 import checkpoints, local_copy
from local_mode.session import Session, open_session
from sagemaker.chainer.estimator import Chainer
from sagemaker.chainer.model import ChainerModel
from sagemaker.model import Model
from sagemaker.network import NetworkConfig
from sagemaker.processing import ProcessingInput, ProcessingOutput, Processor
from sagemaker.s3 import S3Downloader, S3Uploader
from sagemaker.workflow.pipeline import Pipeline
from sagemaker.workflow.pipeline_context import LocalPipelineSession
from sagemaker.workflow.steps import TrainingStep
from support import (
    CSV,
    IMAGE,
    JSON,
    NPY,
    ROLE,
    containers,
    free_port,
    load,
    make_estimator,
    npy,
    open_tar,
    output,
    pack,
)

WRITES = """
import json, os, sys
import sagemaker_containers

def model_fn(model_dir):
    return open(os.path.join(model_dir, 'text')).read()

def predict_fn(data, model):
    return model

if __name__ == '__main__':
    env = sagemaker_containers.training_env()
    text = [os.environ['PRICE'], env.hyperparameters['price'], 'OMPI_COMM_WORLD_RANK' in os.environ]
    with open(os.path.join(env.model_dir, 'text'), 'w') as f:
        json.dump(text, f)
"""
# The toolkit of a host that still starts would wait for the name of one that has ended, so they meet.
MEETS_THE_OTHER = """
    import socket, time
    server = socket.create_server(('', 5000))
    for host in env.hosts:
        while True:
            try:
                socket.create_connection((host, 5000)).close()
                break
            except OSError:
                time.sleep(0.1)
    for host in env.hosts:
        server.accept()
"""
PRICE = '$HOME costs $$5 or ${5}'


@pytest.fixture(autouse=True)
def nothing_left(session):
    """After each test the session's directory is as before."""
    before = os.listdir(session.directory)
    yield
    assert os.listdir(session.directory) == before


@pytest.fixture
def script(tmp_path):
    """Return a function that writes a script and returns its path."""

    def write(text, name='script.py'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def test_a_script_of_awss_in_a_subdirectory_without_mpi_on_two_hosts(session, script, other_port):
    directory = script(WRITES + MEETS_THE_OTHER, 'sub/script.py').parent.parent
    options = dict(source_dir=str(directory), dependencies=[], environment={'PRICE': PRICE})
    options.update(instance_count=2, use_mpi=False)
    estimator = make_estimator(session, 'sub/script.py', options, price=PRICE)
    estimator.fit()
    predictor = estimator.deploy(1, 'local')
    try:
        answer = session.sagemaker_runtime_client.invoke_endpoint(b'[1]', predictor.endpoint_name, JSON)
        assert json.loads(json.loads(answer['Body'].read())) == [PRICE, PRICE, False]
    finally:
        predictor.delete_endpoint()


def test_a_job_is_described_as_it_was_asked_for_and_attached_to(session, script):
    estimator = make_estimator(session, script(WRITES), dict(environment={'PRICE': '1'}), price=2)
    estimator.fit()
    described = session.sagemaker_client.describe_training_job(estimator._current_job_name)
    assert described['Environment'] == {'PRICE': '1'}
    again = Chainer.attach(estimator._current_job_name, session)
    assert again.model_data == estimator.model_data and again.hyperparameters()['price'] == '2'


def test_a_job_without_its_input_fails_with_the_reason(session, script):
    estimator = make_estimator(session, script(WRITES))
    with pytest.raises(JobError, match='Training job .* failed.*NoSuchBucket'):
        estimator.fit({'train': 's3://no-such-bucket/data'})
    described = session.sagemaker_client.describe_training_job(estimator._current_job_name)
    assert described['TrainingJobStatus'] == 'Failed' and 'NoSuchBucket' in described['FailureReason']


def test_a_failure_beside_local_output_is_told(session, script, tmp_path):
    estimator = make_estimator(session, script(WRITES), dict(output_path=f'file://{tmp_path}/out'))
    with pytest.raises(RuntimeError, match="KeyError: 'PRICE'"):
        estimator.fit()
    described = session.sagemaker_client.describe_training_job(estimator._current_job_name)
    assert described['TrainingJobStatus'] == 'Failed' and 'PRICE' in described['FailureReason']
    assert described['Environment'] == {}  # and no secret of the hosts


def test_a_failure_is_one_where_the_log_ends_too_early(session, script, wrapped_docker):
    """A restarted Docker may lose a log; the exit code counts."""
    wrapped_docker('[ "$1" != logs ] || exit 0')
    with pytest.raises(RuntimeError, match="KeyError: 'PRICE'"):
        make_estimator(session, script(WRITES)).fit()


def test_neither_compose_nor_another_program_is_needed(session, script, wrapped_docker, monkeypatch):
    monkeypatch.setenv('PATH', str(wrapped_docker('[ "$1" != compose ] || exit 1').parent))
    make_estimator(session, script(WRITES), dict(environment={'PRICE': '1'}), price=1).fit()


SLOW = """
import os, signal, sys, time
if __name__ == '__main__':
    open(os.environ['SM_MODEL_DIR'] + '/so-far', 'w').write('some')
    if EXITS:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    time.sleep(100)
"""


@pytest.mark.parametrize('exits', ['True', 'False'])
def test_max_run_stops_a_job_and_keeps_what_there_is(session, script, capsys, exits):
    estimator = make_estimator(session, script(SLOW.replace('EXITS', exits)), dict(max_run=5))
    estimator.fit()
    assert 'was stopped: it took longer than max_run, 5 seconds' in capsys.readouterr().out
    described = session.sagemaker_client.describe_training_job(estimator._current_job_name)
    assert described['TrainingJobStatus'] == 'Stopped'
    with open_tar(session, estimator.model_data) as tar:
        assert 'so-far' in tar.getnames()
    assert containers(session) == []


COUNTS = """
import os, signal
if __name__ == '__main__':
    path = '/opt/ml/checkpoints/count'
    count = int(open(path).read()) + 1 if os.path.exists(path) else 0
    open(path, 'w').write(str(count))
    if not count:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize('where', ['s3://{bucket}/checkpoints', 'file://{tmp_path}/checkpoints'])
def test_a_killed_job_goes_on_from_its_checkpoints(session, script, tmp_path, where):
    uri = where.format(bucket=session.default_bucket(), tmp_path=tmp_path)
    estimator = make_estimator(session, script(COUNTS), dict(checkpoint_s3_uri=uri))
    with pytest.raises(RuntimeError, match='SIGKILL'):
        estimator.fit()
    estimator.fit()
    if where.startswith('s3:'):
        assert S3Downloader.read_file(uri + '/count', session) == '1'
    else:
        assert (tmp_path / 'checkpoints' / 'count').read_text() == '1'


def test_checkpoints_that_could_not_be_written_are_written_later_or_told(session, monkeypatch):
    uri = f's3://{session.default_bucket()}/broken'
    upload, failing = session.s3_client.upload_file, [True]

    def sometimes(*args):
        if failing:
            raise ConnectionError('no route')
        upload(*args)

    monkeypatch.setattr(session.s3_client, 'upload_file', sometimes)
    monkeypatch.setattr(local_mode.s3, 'SYNC', 0.1)
    with checkpoints(session, uri) as directory:
        pathlib.Path(directory, 'state').write_text('1')
        time.sleep(0.5)
        failing.clear()
    assert S3Downloader.read_file(uri + '/state', session) == '1'
    failing.append(True)
    with pytest.raises(RuntimeError, match='could not be written to .*: no route'):
        with checkpoints(session, uri) as directory:
            pathlib.Path(directory, 'more').write_text('2')


LINKS = """
import os, socket
if __name__ == '__main__':
    for directory in '/opt/ml/model', '/opt/ml/checkpoints', '/opt/ml/output/data':
        os.chdir(directory)
        open('real', 'w').write('real')
        os.mkdir('below')
        os.symlink('../real', 'below/relative')
        os.symlink(directory + '/real', 'absolute')
        os.symlink(os.environ['SECRET'], 'secret')
        os.symlink(os.path.dirname(os.environ['SECRET']), 'secrets')
        os.symlink('loop', 'loop')
        os.mkfifo('fifo')
        socket.socket(socket.AF_UNIX).bind('socket')
"""


@pytest.fixture
def secret(tmp_path):
    (tmp_path / 'secrets').mkdir()
    (tmp_path / 'secrets' / 'file').write_text('secret')
    return str(tmp_path / 'secrets' / 'file')


def test_links_of_a_job_work_and_lead_to_nothing_of_this_machine(session, script, secret):
    kept = f's3://{session.default_bucket()}/linked'
    options = dict(environment={'SECRET': secret}, checkpoint_s3_uri=kept)
    estimator = make_estimator(session, script(LINKS), options)
    estimator.fit()
    directory = local_copy(session, estimator.model_data).removeprefix('file://')
    names = {os.path.relpath(os.path.join(root, name), directory): pathlib.Path(root, name)
             for root, _, files in os.walk(directory) for name in files}  # fmt: skip
    assert {name: path.read_text() for name, path in names.items()} == dict.fromkeys(
        ['real', 'absolute', 'below/relative'], 'real'
    )
    shutil.rmtree(directory)
    with output(estimator) as tar:
        assert {'data/real', 'data/absolute', 'data/below/relative'} < {*tar.getnames()}
        assert not [name for name in tar.getnames() if 'secret' in name]
    found = {uri.removeprefix(kept + '/') for uri in S3Downloader.list(kept, session)}
    assert found == {'real', 'below/relative'}


WRITES_MUCH = """
import os
if __name__ == '__main__':
    with open('/opt/ml/model/weights', 'wb') as f:
        f.write(os.urandom(3 << 20))
    if EXITS:
        raise ArithmeticError('at the end')
"""


@pytest.mark.parametrize('fault, exits', [('disk', 'True'), ('S3', 'False')])
def test_a_model_that_cannot_be_collected_is_kept_and_named(script, fault, exits, monkeypatch):
    """The disk is full, after a failed job; S3 has gone, after a good one."""
    monkeypatch.setenv('AWS_MAX_ATTEMPTS', '1')
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with contextlib.closing(open_session(embedded=True, serving_port=free_port())) as session:
        estimator = make_estimator(session, script(WRITES_MUCH.replace('EXITS', exits)))
        wait = session.engine.wait

        def end(name):
            code = wait(name)
            if fault == 'S3':
                session.stop_aws()
            else:
                resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
            return code

        monkeypatch.setattr(session.engine, 'wait', end)
        try:
            with pytest.raises(JobError) as error:
                estimator.fit()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        described = session.sagemaker_client.describe_training_job(estimator._current_job_name)
        assert described['TrainingJobStatus'] == 'Failed'
        session.stop_aws = None
    (kept,) = re.findall('What it wrote is in (.*), as it could not be collected', str(error.value))
    assert os.path.getsize(f'{kept}/model/weights') == 3 << 20
    assert ('ArithmeticError: at the end' in str(error.value)) == (exits == 'True')
    shutil.rmtree(kept)


NAMES = """
import os
def model_fn(model_dir): return open(model_dir + '/name').read()
def predict_fn(data, model): return model
"""


def test_models_beside_each_other_answer_for_themselves_and_leave_nothing(session, script, tmp_path, other_port):
    """A deploy takes the room of one model, which goes with the endpoint, and no file appears beside the user's."""
    (tmp_path / 'models').mkdir()
    predictors, size = [], 3 << 20
    options = dict(role=ROLE, image_uri=IMAGE, sagemaker_session=session)
    before = os.listdir(session.directory)
    for name in 'one', 'two':
        (tmp_path / 'name').write_text(name)
        (tmp_path / 'weights').write_bytes(os.urandom(size))
        archive = pack(tmp_path / 'models' / f'{name}.tar.gz', tmp_path / 'name', tmp_path / 'weights')
        data = f'file://{archive}' if name == 'one' else session.upload_data(archive, key_prefix='two')
        session.set_serving_port(free_port())
        predictors.append(ChainerModel(data, entry_point=str(script(NAMES)), **options).deploy(1, 'local'))
    try:
        client = session.sagemaker_runtime_client
        answers = [client.invoke_endpoint(b'[1]', p.endpoint_name, JSON)['Body'].read() for p in predictors]
        assert [json.loads(answer) for answer in answers] == ['one', 'two']
        used = sum(path.stat().st_size for path in pathlib.Path(session.directory).rglob('*') if path.is_file())
        assert used < 2.2 * size
    finally:
        for predictor in predictors:
            predictor.delete_endpoint()
    assert {path.name for path in (tmp_path / 'models').iterdir()} == {'one.tar.gz', 'two.tar.gz'}
    assert os.listdir(session.directory) == before


def test_code_that_is_not_there_is_told_and_the_session_closes(script, tmp_path):
    with contextlib.closing(open_session(embedded=True, serving_port=free_port())) as session:
        (tmp_path / 'empty').mkdir()
        data = session.upload_data(pack(tmp_path / 'model.tar.gz', tmp_path / 'empty'), key_prefix='model')
        submitted = f's3://{session.default_bucket()}/none.tar.gz'
        model = Model(IMAGE, data, ROLE, env={'SAGEMAKER_SUBMIT_DIRECTORY': submitted}, sagemaker_session=session)
        with pytest.raises(EndpointError, match='No S3 objects found .*none.tar.gz'):
            model.deploy(1, 'local')
    assert not os.path.exists(session.directory)


def test_an_endpoint_has_one_instance(estimator):
    with pytest.raises(ValueError, match=r'one instance: deploy\(1'):
        estimator.deploy(initial_instance_count=2, instance_type='local')


def test_batch_transform(session, estimator, small_mnist, other_port):
    """Transform jobs on CSV lines, npy and JSON files write the endpoint's answers to S3."""
    images = load(small_mnist / 'test' / 'test.npz')['images'][:4]
    bodies = {
        CSV: '\n'.join(','.join(map(str, image)) for image in images).encode(),
        NPY: npy(images),
        JSON: json.dumps(images.tolist()).encode(),
    }
    rows = []
    for content_type, body in bodies.items():
        name = content_type.split('/')[1]
        data = f's3://{session.default_bucket()}/transform/{name}/in'
        out = f's3://{session.default_bucket()}/transform/{name}/out'
        S3Uploader.upload_string_as_file_body(body, data + '/images', sagemaker_session=session)
        lines = dict(split_type='Line') if content_type == CSV else {}
        transformer = estimator.transformer(1, 'local', output_path=out, accept=JSON, assemble_with='Line')
        transformer.transform(data, content_type=content_type, **lines)
        (answer,) = S3Downloader.list(out, session)
        assert answer.endswith('/images.out')
        rows.append(json.loads(S3Downloader.read_file(answer, session)))
        assert containers(session) == []
    assert np.shape(rows) == (3, 4, 10)
    np.testing.assert_allclose(rows[1:], rows[:1] * 2, atol=1e-3)


def test_a_batch_that_the_model_refuses_fails_the_job(session, estimator, other_port):
    data = f's3://{session.default_bucket()}/refused/in'
    S3Uploader.upload_string_as_file_body('1,2,3', data + '/bad', sagemaker_session=session)
    with pytest.raises(RuntimeError, match='Transform job .* failed.*400'):
        estimator.transformer(1, 'local').transform(data, content_type=CSV)
    assert containers(session) == []


STEADY = """
import os, time
def model_fn(model_dir): return open(model_dir + '/name').read()
def predict_fn(data, model): return model
if __name__ == '__main__':
    time.sleep(6)
    open(os.environ['SM_MODEL_DIR'] + '/name', 'w').write(os.environ['NAME'])
"""


def test_two_jobs_and_an_endpoint_at_once_in_one_session(session, script, other_port):
    """A job that ends removes its own files, and not those of the other job and the endpoint."""
    before = os.listdir(session.directory)
    first = make_estimator(session, script(STEADY), dict(environment={'NAME': 'first'}))
    first.fit()
    jobs = [make_estimator(session, script(STEADY), dict(environment={'NAME': n})) for n in ('one', 'two')]
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        running = [threads.submit(job.fit, job_name=f'at-once-{i}') for i, job in enumerate(jobs)]
        time.sleep(2)
        predictor = first.deploy(1, 'local')
        assert [job.result() for job in running] == [None, None]
    try:
        answer = session.sagemaker_runtime_client.invoke_endpoint(b'[1]', predictor.endpoint_name, JSON)
        assert json.loads(answer['Body'].read()) == 'first'
        for job, name in zip(jobs, ('one', 'two')):
            with open_tar(session, job.model_data) as tar:
                assert tar.extractfile('name').read().decode() == name
    finally:
        predictor.delete_endpoint()
    assert os.listdir(session.directory) == before


def test_a_step_of_a_pipeline_runs_on_our_engine(session, script):
    """By a session that is the SDK's LocalPipelineSession, too; and, as a plain Session, by name."""

    class PipelineSession(Session, LocalPipelineSession):
        pass

    with contextlib.closing(PipelineSession(session.boto_session)) as ours:
        for own in ours, session:
            estimator = make_estimator(own, script(WRITES), dict(environment={'PRICE': '5'}), price='5')
            given = dict(step_args=estimator.fit()) if own is ours else dict(estimator=estimator)
            pipeline = Pipeline('a-pipeline', steps=[TrainingStep('train', **given)], sagemaker_session=ours)
            pipeline.create(ROLE)
            (step,) = pipeline.start().list_steps()['PipelineExecutionSteps']
            assert step['StepStatus'] == 'Succeeded', step
        assert containers(ours) == containers(session) == []


def test_a_processing_job_keeps_to_its_time_and_network(session, capsys, monkeypatch):
    options = dict(role=ROLE, instance_count=1, instance_type='local', sagemaker_session=session, image_uri=IMAGE)
    late = Processor(entrypoint=['sleep', '60'], max_runtime_in_seconds=2, **options)
    late.run()
    assert late.latest_job.describe()['ProcessingJobStatus'] == 'Stopped'
    assert 'it took longer than max_runtime_in_seconds, 2 seconds' in capsys.readouterr().out
    with pytest.raises(JobError, match='exited with code 1'):
        Processor(entrypoint=['false'], **options).run(job_name='fails')
    described = session.sagemaker_client.describe_processing_job('fails')
    assert described['ProcessingJobStatus'] == 'Failed' and 'exited with code 1' in described['FailureReason']
    commands, engine = [], type(session.engine)
    call = engine.__call__
    monkeypatch.setattr(engine, '__call__', lambda self, *a, **k: commands.append(a) or call(self, *a, **k))
    alone = NetworkConfig(enable_network_isolation=True)
    Processor(entrypoint=['true'], network_config=alone, **options).run()
    (create,) = [command for command in commands if command[:2] == ('network', 'create')]
    assert '--internal' in create


def test_a_processing_job_runs_on_our_engine_and_goes(session, tmp_path, secret):
    """It leaves no container, and no missing image is asked for on Docker Hub."""
    (tmp_path / 'in').mkdir()
    (tmp_path / 'in' / 'text').write_text('three more words')
    count = (
        f'cd /opt/ml/processing/out; wc -w < ../in/text > words; ln -s words link; ln -s {secret} secret; mkfifo fifo'
    )
    options = dict(role=ROLE, instance_count=1, instance_type='local', sagemaker_session=session)
    out = f's3://{session.default_bucket()}/words'
    files = dict(
        inputs=[ProcessingInput(session.upload_data(str(tmp_path / 'in')), '/opt/ml/processing/in')],
        outputs=[ProcessingOutput('/opt/ml/processing/out', out, output_name='words')],
    )
    Processor(image_uri=IMAGE, entrypoint=['sh', '-c', count], **options).run(**files)
    assert S3Downloader.read_file(out + '/words', session).strip() == '3'
    assert {*S3Downloader.list(out, session)} == {out + '/words', out + '/link'}
    with pytest.raises(JobError, match='Processing job .* failed.*exited with code 9'):
        Processor(image_uri=IMAGE, entrypoint=['sh', '-c', 'exit 9'], **options).run()
    session.config = {'local': {**session.config['local'], 'container_config': {'shm_size': '123m'}}}
    checks = '[ $PYTHONUNBUFFERED = 1 ] && df /dev/shm | grep " 125952 "'
    try:
        Processor(image_uri=IMAGE, entrypoint=['sh', '-c', checks], **options).run()
        session.config['local']['container_config'] = {'depends_on': 'x'}
        with pytest.raises(JobError, match='unknown flag: --depends-on'):
            Processor(image_uri=IMAGE, entrypoint=['sh', '-c', 'true'], **options).run()
    finally:
        del session.config['local']['container_config']
    with pytest.raises(JobError, match='no-such-command'):  # is for the image's entry point
        Processor(image_uri=IMAGE, **options).run(arguments=['no-such-command'])
    with pytest.raises(EngineError, match='no image none-such'):
        Processor(image_uri='none-such', entrypoint=['sh'], **options).run()
    assert containers(session) == []
