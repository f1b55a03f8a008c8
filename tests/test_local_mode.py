"""The heart: the script trained and hosted in the real container, through the SDK."""

import ast
import contextlib
import io
import json
import logging
import pathlib
import re
import socket
import subprocess
import tarfile
import time

import botocore.exceptions
import numpy as np
import pytest
import urllib3
from sagemaker.chainer.estimator import Chainer
from sagemaker.chainer.model import ChainerModel
from sagemaker.s3 import S3Downloader
from test_serving import free_port

import chainer_mnist_single_machine as script
from local_mode import aws
from local_mode import session as session_module
from local_mode.docker import LABEL, docker, image_uri
from local_mode.session import open_session

pytestmark = pytest.mark.docker
IMAGE = image_uri('local')
PROGRAM = 'chainer_mnist_single_machine.py'


@pytest.fixture(scope='module')
def session():
    session = open_session(embedded=True, serving_port=free_port())
    yield session
    session.close()


@pytest.fixture(scope='module')
def inputs(session, small_mnist):
    """The channels, under a prefix that contains "model"."""
    return {
        name: session.upload_data(str(small_mnist / name), key_prefix='my/model/data/' + name)
        for name in ('train', 'test')
    }


def make_estimator(session, entry_point=script.__file__, options={}, **hyperparameters):
    return Chainer(
        **{
            **dict(
                entry_point=str(entry_point),
                role='arn:aws:iam::123456789012:role/SageMakerRole',
                instance_count=1,
                instance_type='local',
                image_uri=IMAGE,
                sagemaker_session=session,
                output_path=f's3://{session.default_bucket()}/my/model',
                hyperparameters=hyperparameters,
            ),
            **options,
        }
    )


@pytest.fixture(scope='module')
def estimator(session, inputs):
    estimator = make_estimator(session, epochs=2, batch_size=100)
    estimator.fit(inputs)
    return estimator


@pytest.fixture(scope='module')
def predictor(session, estimator):
    predictor = estimator.deploy(initial_instance_count=1, instance_type='local')
    yield predictor
    predictor.delete_model()
    predictor.delete_endpoint()
    assert containers(session) == [] and not answers(session.serving_port)


def containers(session, *states):
    """The ids of the session's containers, in any state or in one of these."""
    args = [arg for s in states for arg in ('--filter', 'status=' + s)]
    return docker('ps', '--all', '--quiet', '--filter', f'label={LABEL}={session.name}', *args).split()


def answers(port, host='127.0.0.1'):
    with socket.socket() as s:
        return s.connect_ex((host, port)) == 0


@contextlib.contextmanager
def output(estimator, tmp_path):
    """The job's output.tar.gz, open, also that of a failed job."""
    S3Downloader.download(
        f'{estimator.output_path}/{estimator._current_job_name}/output/output.tar.gz',
        str(tmp_path),
        sagemaker_session=estimator.sagemaker_session,
    )
    with tarfile.open(tmp_path / 'output.tar.gz') as tar:
        yield tar


def test_training_brings_back_model_and_output(estimator, tmp_path):
    assert estimator.model_data.endswith('/output/model.tar.gz')
    with output(estimator, tmp_path) as tar:
        assert {
            'success',
            'data/accuracy.png',
            'data/loss.png',
            'data/cg.dot',
            'data/log',
            'data/snapshot_epoch_2',
        } <= set(tar.getnames())
        log = json.load(tar.extractfile('data/log'))
    assert log[-1]['iteration'] == 40  # 2 epochs of 2,000 images: the batch size of 100 arrived
    assert log[-1]['validation/main/accuracy'] > 0.8


def test_a_finished_job_leaves_no_container_and_no_copy_of_the_data(session, estimator):
    assert containers(session, 'exited', 'created') == []
    assert not list(pathlib.Path(session.directory).rglob('train.npz'))


def test_the_endpoint_reads_digits(predictor, small_mnist):
    with np.load(small_mnist / 'test' / 'test.npz') as test:
        prediction = predictor.predict(test['images'])
        assert prediction.shape == (1000, 10) and prediction.dtype == np.float32
        assert (prediction.argmax(axis=1) == test['labels']).mean() > 0.8
        image = test['images'][0]
    nested = predictor.predict([image.tolist()])  # as the pad's data: float64 to the SDK
    np.testing.assert_allclose(nested, prediction[:1], atol=1e-4)


def test_the_user_sees_the_servers_sentence(predictor):
    with pytest.raises(botocore.exceptions.ClientError, match=r'ModelError.*400.*shape \(5, 7\)'):
        predictor.predict(np.zeros((5, 7), np.float32))


def test_the_endpoint_answers_on_this_machine_only(session, predictor):
    binding = docker('ps', '--filter', f'label={LABEL}={session.name}', '--format', '{{.Ports}}')
    assert f'127.0.0.1:{session.serving_port}->8080' in binding and '0.0.0.0' not in binding


def test_the_endpoint_has_few_privileges(session, predictor):
    """No root for workers, no new privileges, nothing to write to but /tmp."""
    (name,) = containers(session)
    workers = [
        line.split()
        for line in docker('top', name, '-eo', 'pid,uid,cmd').splitlines()[2:]
        if 'gunicorn' in line
    ]
    assert len(workers) >= 2 and '0' not in {uid for _, uid, *_ in workers[1:]}
    assert docker('inspect', '--format', '{{.HostConfig.ReadonlyRootfs}}', name).strip() == 'true'
    assert (
        'NoNewPrivs:\t1'
        in docker('exec', name, 'sh', '-c', 'cat /proc/[0-9]*/status').split('Name:\tgunicorn')[1]
    )


def test_credentials_reach_no_log_no_artifact_and_no_error(monkeypatch, tmp_path, capfd, caplog):
    """Those of an account, which the SDK hands to containers, and what the hosts of a job share."""
    account, stop = aws.start()
    monkeypatch.setattr(session_module.boto3, 'Session', lambda: account)
    monkeypatch.setattr(session_module.secrets, 'token_hex', lambda: 'what the hosts share')
    caplog.set_level(logging.INFO, 'sagemaker.local')
    (tmp_path / 'script.py').write_text(
        'import os, sys\nfor name in "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN":\n'
        '    assert os.environ[name]\nopen(os.environ["SM_MODEL_DIR"] + "/model", "w").write("a model")\n'
        'sys.exit("failed at last")'
    )
    session = open_session()
    try:
        estimator = make_estimator(
            session, tmp_path / 'script.py', dict(instance_count=2, container_log_level=logging.DEBUG)
        )
        with pytest.raises(RuntimeError, match='failed at last') as error:
            estimator.fit()
        bucket = account.resource('s3').Bucket(session.default_bucket())
        kept = []
        for file in bucket.objects.all():
            if estimator._current_job_name in file.key:
                with tarfile.open(fileobj=io.BytesIO(file.get()['Body'].read())) as tar:
                    kept += [tar.extractfile(member).read() for member in tar if member.isfile()]
        out, err = capfd.readouterr()
        texts = [str(error.value), out, err, caplog.text, *(data.decode('latin-1') for data in kept)]
        assert (
            'a model' in texts and 'SM_MODEL_DIR' in out and 'docker compose file' in caplog.text
        )  # or this shows nothing
        credentials = account.get_credentials()
        for secret in credentials.secret_key, credentials.token, 'what the hosts share':
            assert not [text for text in texts if secret in text]
    finally:
        session.close()
        stop()


def test_a_request_without_an_endpoint_is_explained(session, predictor, monkeypatch):
    monkeypatch.setattr(session.sagemaker_runtime_client, 'serving_port', free_port())
    with pytest.raises(ConnectionError, match='Nothing answers on port'):
        predictor.predict(np.zeros((1, 784), np.float32))


def test_deploy_to_the_first_prediction_takes_seconds(session, estimator):
    with other_port(session):
        start = time.monotonic()
        predictor = estimator.deploy(initial_instance_count=1, instance_type='local')
        try:
            predictor.predict(np.zeros((1, 784), np.float32))
            seconds = time.monotonic() - start
        finally:
            predictor.delete_endpoint()
    assert seconds < 20  # 30 s and more with the SDK's own waiting


@contextlib.contextmanager
def other_port(session):
    """A second endpoint of the same session, on a port of its own."""
    before = session.serving_port
    session.set_serving_port(free_port())
    try:
        yield
    finally:
        session.set_serving_port(before)


FAIL = """
import sys
if __name__ == '__main__':
    print('a line on stdout')
    raise ValueError('the dog ate my weights')
"""


def test_a_failing_script_is_reported_with_its_traceback(session, inputs, tmp_path):
    (tmp_path / 'fail.py').write_text(FAIL)
    estimator = make_estimator(session, tmp_path / 'fail.py')
    with pytest.raises(
        RuntimeError,
        match='(?s)Training job .* failed.*Traceback .*File '
        '"/opt/ml/code/fail.py", line 5.*ValueError: the dog ate my weights',
    ):
        estimator.fit(inputs)
    assert containers(session, 'exited', 'created') == []


def test_an_unknown_hyperparameter_and_a_missing_channel_are_reported(session, inputs):
    with pytest.raises(RuntimeError, match='unknown hyperparameter --batchsize'):
        make_estimator(session, batchsize=128).fit(inputs)
    with pytest.raises(RuntimeError, match="no 'test' channel"):
        make_estimator(session, epochs=1).fit({'train': inputs['train']})


@pytest.mark.parametrize(
    'options',
    [
        dict(instance_count=2),
        dict(instance_count=2, use_mpi=True, num_processes=4, process_slots_per_host=2),
        dict(use_mpi=True, num_processes=2, process_slots_per_host=2),
    ],
    ids=['two_hosts', 'two_processes_each', 'one_host'],
)
def test_several_processes_train_as_one_does(session, inputs, estimator, tmp_path, capfd, options):
    """On any number of hosts the same batches make the same number of steps, to the same accuracy."""
    together = make_estimator(session, options=options, epochs=2, batch_size=100)
    together.fit(inputs)
    processes = options.get('num_processes', 2)
    assert f'2 epochs, {processes} processes' in capfd.readouterr().out
    with output(together, tmp_path) as tar, output(estimator, tmp_path / 'alone') as alone:
        log, one = (json.load(t.extractfile('data/log')) for t in (tar, alone))
    assert log[-1]['iteration'] == one[-1]['iteration'] == 40
    assert abs(log[-1]['validation/main/accuracy'] - one[-1]['validation/main/accuracy']) < 0.02
    assert containers(session, 'exited', 'created') == []


WHO = """
import os, socket
from mpi4py.MPI import COMM_WORLD as comm

if __name__ == '__main__':
    print('WHO', comm.gather((socket.gethostbyname(socket.gethostname()), os.environ['GREETING'], os.environ['MINE'])))
"""


def test_each_host_gets_its_slots_the_mpi_options_and_the_environment(session, inputs, tmp_path, capfd):
    (tmp_path / 'who.py').write_text(WHO)
    make_estimator(
        session,
        tmp_path / 'who.py',
        dict(
            instance_count=2,
            process_slots_per_host=2,
            additional_mpi_options='-x GREETING=hello',
            environment={'MINE': 'my own'},
        ),
    ).fit(inputs)
    ranks = ast.literal_eval(re.search(r'WHO (\[\(.*)', capfd.readouterr().out)[1].strip())
    assert [rank[1:] for rank in ranks] == 4 * [('hello', 'my own')]
    assert ranks[0] == ranks[1] != ranks[2] == ranks[3]


CRASHES = """
import os, sys, time
import chainermn

if __name__ == '__main__':
    comm = chainermn.create_communicator('naive')
    assert comm.size == 2
    if comm.rank == 0:
        with open(os.path.join(os.environ['SM_OUTPUT_DATA_DIR'], 'partial'), 'w') as f:
            f.write('so far')
    comm.mpi_comm.Barrier()
    if comm.rank == int(sys.argv[sys.argv.index('--crash') + 1]):
        raise ValueError('rank {} crashed'.format(comm.rank))
    time.sleep(300)
"""


@pytest.mark.parametrize('rank', [0, 1])
def test_a_crash_on_any_rank_ends_the_job(session, inputs, tmp_path, rank):
    (tmp_path / 'crashes.py').write_text(CRASHES)
    estimator = make_estimator(session, tmp_path / 'crashes.py', dict(instance_count=2), crash=rank)
    start = time.monotonic()
    with pytest.raises(
        RuntimeError,
        match=rf'(?s)failed.*1,{rank}.*Traceback .*File "crashes.py", line 13'
        f'.*ValueError: rank {rank} crashed',
    ):
        estimator.fit(inputs)
    assert time.monotonic() - start < 60
    assert containers(session, 'exited', 'created') == []
    with output(estimator, tmp_path) as tar:
        assert tar.extractfile('data/partial').read() == b'so far'


def test_more_processes_than_slots_are_refused(session, inputs):
    with pytest.raises(RuntimeError, match='num_processes=3 do not fit on 2 host'):
        make_estimator(session, options=dict(instance_count=2, num_processes=3)).fit(inputs)


def test_a_model_that_does_not_load_is_reported_in_seconds(session, estimator, tmp_path):
    (tmp_path / 'broken.py').write_text('def model_fn(model_dir): raise OSError("weights are gone")')
    model = ChainerModel(
        estimator.model_data,
        estimator.role,
        str(tmp_path / 'broken.py'),
        image_uri=IMAGE,
        sagemaker_session=session,
    )
    with other_port(session):
        start = time.monotonic()
        with pytest.raises(RuntimeError, match='(?s)The endpoint stopped.*weights are gone'):
            model.deploy(initial_instance_count=1, instance_type='local')
        assert time.monotonic() - start < 30  # the SDK pings a dead container for 115 s
        assert not answers(session.serving_port)


def test_a_taken_port_is_found_before_deploying(session, estimator):
    with socket.socket() as stranger, other_port(session):
        stranger.bind(('127.0.0.1', session.serving_port))
        stranger.listen()
        with pytest.raises(RuntimeError, match='is taken by another program.*another port'):
            estimator.deploy(initial_instance_count=1, instance_type='local')


def test_deploying_again_asks_to_delete_the_earlier_endpoint(predictor, estimator):
    with pytest.raises(RuntimeError, match=r'earlier endpoint of this notebook.*delete_endpoint\(\)'):
        estimator.deploy(initial_instance_count=1, instance_type='local')


def test_a_port_taken_by_another_notebook_is_named(session, predictor, estimator):
    other = open_session(embedded=True, serving_port=session.serving_port)
    try:
        with pytest.raises(RuntimeError, match='another notebook.*docker rm -f'):
            other.check_serving_port()
    finally:
        other.close()
    assert answers(session.serving_port)  # closing one session does not touch another's endpoint


USES_A_REQUIREMENT = """
import os
import iniconfig

def model_fn(model_dir):
    with open(os.path.join(model_dir, 'text')) as f:
        return f.read() + iniconfig.__name__

def input_fn(input_data, content_type):
    return input_data

def predict_fn(data, model):
    return model

def output_fn(prediction, accept):
    return prediction, 'text/plain'

if __name__ == '__main__':
    with open(os.path.join(os.environ['SM_MODEL_DIR'], 'text'), 'w') as f:
        f.write('written where there is ' + iniconfig.__name__ + ', read where there is ')
"""


@pytest.fixture
def template(tmp_path):
    """A user's own script with requirements.txt."""
    (tmp_path / 'code').mkdir()
    (tmp_path / 'code' / 'mine.py').write_text(USES_A_REQUIREMENT)
    (tmp_path / 'code' / 'requirements.txt').write_text('iniconfig==2.0.0\n')
    return tmp_path / 'code'


EXPECTED = b'written where there is iniconfig, read where there is iniconfig'


def test_the_users_requirements_are_installed(session, inputs, template):
    estimator = Chainer(
        entry_point='mine.py',
        source_dir=str(template),
        role='arn:aws:iam::1:role/r',
        instance_count=1,
        instance_type='local',
        image_uri=IMAGE,
        sagemaker_session=session,
    )
    estimator.fit({'train': inputs['test']})
    with other_port(session):
        predictor = estimator.deploy(initial_instance_count=1, instance_type='local')
        try:
            response = session.sagemaker_runtime_client.invoke_endpoint(b'', predictor.endpoint_name)
            assert response['Body'].read() == EXPECTED
        finally:
            predictor.delete_endpoint()


def opt_ml(root, small_mnist, submit_directory='/opt/ml/code', program=PROGRAM, **hyperparameters):
    """Lay out a directory as SageMaker's contract has it, and as the README tells."""
    for d in 'input/config', 'model', 'output/data', 'code':
        (root / d).mkdir(parents=True)
    (root / 'input' / 'data').mkdir()
    for name in 'train', 'test':
        (root / 'input' / 'data' / name).mkdir()
        (root / 'input' / 'data' / name / (name + '.npz')).write_bytes(
            (small_mnist / name / (name + '.npz')).read_bytes()
        )
    (root / 'code' / PROGRAM).write_text(open(script.__file__).read())
    config = {
        'hyperparameters': {
            'sagemaker_program': program,
            'sagemaker_submit_directory': submit_directory,
            **hyperparameters,
        },
        'resourceconfig': {'current_host': 'algo-1', 'hosts': ['algo-1'], 'network_interface_name': 'eth0'},
        'inputdataconfig': {'train': {'TrainingInputMode': 'File'}, 'test': {'TrainingInputMode': 'File'}},
    }
    for name, content in config.items():
        (root / 'input' / 'config' / (name + '.json')).write_text(json.dumps(content))


@contextlib.contextmanager
def serve(*args, port):
    """`docker run ... serve` until /ping answers."""
    name = docker('run', '--detach', '--label', LABEL + '=by-hand', *args).strip()
    http = urllib3.PoolManager(retries=False, timeout=2)
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(urllib3.exceptions.HTTPError):
                if http.request('GET', f'http://127.0.0.1:{port}/ping').status == 200:
                    break
            assert time.monotonic() < deadline, docker('logs', name)
            time.sleep(0.1)
        yield name
    finally:
        docker('rm', '--force', name)


def test_by_hand_as_an_unprivileged_owner(small_mnist, tmp_path):
    """`docker run ... train` and `serve`: what they write belongs to the directory's owner."""
    root = tmp_path / 'ml'
    opt_ml(root, small_mnist, epochs='1', batch_size='100')
    subprocess.run(['chown', '-R', '12345:23456', str(root)], check=True)
    tmp_path.chmod(0o755)
    docker('run', '--rm', '--hostname', 'algo-1', '-v', f'{root}:/opt/ml', IMAGE, 'train')
    assert (root / 'output' / 'success').exists()
    written = [
        root / 'model' / 'model.npz',
        root / 'output' / 'data' / 'accuracy.png',
        root / 'output' / 'success',
    ]
    assert {(p.stat().st_uid, p.stat().st_gid) for p in written} == {(12345, 23456)}
    assert {p.stat().st_uid for p in root.rglob('*')} == {12345}

    port = free_port()
    with serve(
        '-p',
        f'127.0.0.1:{port}:8080',
        '-v',
        f'{root}:/opt/ml',
        '-e',
        'SAGEMAKER_PROGRAM=' + PROGRAM,
        IMAGE,
        'serve',
        port=port,
    ) as name:
        users = docker('top', name, '-eo', 'pid,uid,cmd').splitlines()[1:]
        assert users and all(line.split()[1] == '12345' for line in users)
        response = urllib3.PoolManager().request(
            'POST', f'http://127.0.0.1:{port}/invocations', body=json.dumps([0.0] * 784)
        )
        assert np.shape(json.loads(response.data)) == (1, 10)


def test_two_hosts_by_hand_as_an_unprivileged_owner(small_mnist, tmp_path):
    """sshd and what it starts run as the owner, too; and the key of another job does not open it."""
    tmp_path.chmod(0o755)
    network = docker('network', 'create', '--label', LABEL, f'by-hand-{free_port()}').strip()
    names = []
    try:
        for host in 'algo-1', 'algo-2':
            root = tmp_path / host
            opt_ml(root, small_mnist, epochs='1', batch_size='100')
            (root / 'input' / 'config' / 'resourceconfig.json').write_text(
                json.dumps(
                    {'current_host': host, 'hosts': ['algo-1', 'algo-2'], 'network_interface_name': 'eth0'}
                )
            )
            (root / 'code' / PROGRAM).write_text(
                'import time, pathlib\nwhile not pathlib.Path("/opt/ml/output/go").exists(): time.sleep(0.1)\n'
                + open(script.__file__).read()
            )
            subprocess.run(['chown', '-R', '12345:23456', str(root)], check=True)
            names.append(
                docker(
                    'run',
                    '--detach',
                    '--label',
                    LABEL + '=by-hand',
                    '--network',
                    network,
                    '--network-alias',
                    host,
                    '--hostname',
                    host,
                    '-e',
                    'SAGEMAKER_MPI_SECRET=a secret',
                    '-v',
                    f'{root}:/opt/ml',
                    IMAGE,
                    'train',
                ).strip()
            )
        login = (
            'import os, training; os.makedirs("/tmp/home", exist_ok=True); training.prepare_ssh(); '
            'os.execvp("ssh", "ssh -o BatchMode=yes sagemaker@algo-2 echo inside".split())'
        )
        users, answers, deadline = set(), {}, time.monotonic() + 60
        while 'true' in docker('inspect', '--format', '{{.State.Running}}', *names):
            assert time.monotonic() < deadline, docker('logs', names[0])
            with contextlib.suppress(RuntimeError):  # gone in the meantime
                users |= {
                    tuple(line.split()[1:])
                    for line in docker('top', names[1], '-eo', 'pid,uid,comm').splitlines()[1:]
                }
            if not answers and ('12345', 'orted') in users:
                for secret in 'a secret', 'another secret':
                    answers[secret] = subprocess.run(
                        [
                            'docker',
                            'run',
                            '--rm',
                            '--network',
                            network,
                            '-e',
                            'SAGEMAKER_MPI_SECRET=' + secret,
                            IMAGE,
                            'python',
                            '-c',
                            login,
                        ],
                        capture_output=True,
                        text=True,
                    )
                for host in 'algo-1', 'algo-2':
                    (tmp_path / host / 'output' / 'go').touch()
        assert docker('wait', *names).split() == ['0', '0'], docker('logs', names[0])
        assert {uid for uid, name in users if name in ('sshd', 'orted', 'train', 'python3')} == {'12345'}
        assert {'sshd', 'orted'} <= {name for _, name in users}
        assert answers['a secret'].stdout == 'inside\n', answers['a secret'].stderr
        assert (
            answers['another secret'].stdout == ''
            and 'Host key verification failed' in answers['another secret'].stderr
        )
        assert (tmp_path / 'algo-1' / 'model' / 'model.npz').stat().st_uid == 12345
        assert ', 2 processes' in docker('logs', names[0])
    finally:
        docker('rm', '--force', *names)
        docker('network', 'rm', network)


def test_two_processes_resume_where_they_were_killed(small_mnist, tmp_path):
    """By hand in one container; to the same weights as two that were not."""

    def run(name, kill_after=None):
        """Run until the end, or until this epoch's checkpoints are there; return what was printed."""
        root = tmp_path / name
        if not root.exists():
            opt_ml(
                root,
                small_mnist,
                epochs='4',
                batch_size='100',
                sagemaker_use_mpi='true',
                sagemaker_process_slots_per_host='2',
            )
            subprocess.run(['chown', '-R', '12345:23456', str(root)], check=True)
        tmp_path.chmod(0o755)
        container = docker(
            'run',
            '--detach',
            '--label',
            LABEL + '=by-hand',
            '--hostname',
            'algo-1',
            '-e',
            'SAGEMAKER_MPI_SECRET=a secret',
            '-v',
            f'{root}:/opt/ml',
            '-v',
            '{}:/opt/ml/checkpoints'.format(tmp_path / ('checkpoints of ' + name)),
            IMAGE,
            'train',
        ).strip()
        try:
            deadline = time.monotonic() + 90
            while 'true' in docker('inspect', '--format', '{{.State.Running}}', container):
                assert time.monotonic() < deadline, docker('logs', container)
                if kill_after and (tmp_path / ('checkpoints of ' + name) / kill_after).exists():
                    docker('kill', container)
                time.sleep(0.02)
            return docker('logs', container)
        finally:
            docker('rm', '--force', container)

    run('whole')
    run('killed', kill_after='epoch_2_process_1_of_2.npz')
    assert not (tmp_path / 'killed' / 'model' / 'model.npz').exists()
    assert re.search(r'Resuming after epoch \d', run('killed'))
    with (
        np.load(tmp_path / 'whole' / 'model' / 'model.npz') as whole,
        np.load(tmp_path / 'killed' / 'model' / 'model.npz') as killed,
    ):
        assert all(np.array_equal(whole[key], killed[key]) for key in whole.files)


def test_a_directory_that_docker_made_becomes_the_owners(small_mnist, tmp_path):
    """The SDK does not make the model's directory: Docker does, as root, when it mounts it."""
    root = tmp_path / 'ml'
    opt_ml(root, small_mnist, epochs='1', batch_size='1000')
    (root / 'model').rmdir()
    subprocess.run(['chown', '-R', '12345:23456', str(root)], check=True)
    tmp_path.chmod(0o755)
    mounts = [
        arg
        for d in ('input', 'output', 'output/data', 'model', 'code')
        for arg in ('-v', f'{root / d}:/opt/ml/{d}')
    ]
    docker('run', '--rm', '--hostname', 'algo-1', *mounts, IMAGE, 'train')
    assert {p.stat().st_uid for p in root.rglob('*')} == {12345}


def test_a_failing_job_by_hand_writes_the_failure_file(small_mnist, tmp_path):
    root = tmp_path / 'ml'
    opt_ml(root, small_mnist, program='fail.py')
    (root / 'code' / 'fail.py').write_text(FAIL)
    done = subprocess.run(
        ['docker', 'run', '--rm', '--hostname', 'algo-1', '-v', f'{root}:/opt/ml', IMAGE, 'train'],
        capture_output=True,
    )
    assert done.returncode != 0
    failure = (root / 'output' / 'failure').read_text()
    assert 'Traceback' in failure and 'ValueError: the dog ate my weights' in failure
    assert done.stdout.count(b'a line on stdout') == 1
    assert done.stderr.count(b'Traceback') == 2  # once live, once in the toolkit's report


def test_code_and_requirements_from_s3_as_on_aws(session, small_mnist, template, tmp_path):
    """On AWS the container itself fetches s3://.../sourcedir.tar.gz, for `train` and for `serve`."""
    with tarfile.open(tmp_path / 'sourcedir.tar.gz', 'w:gz') as tar:
        for path in template.iterdir():
            tar.add(path, path.name)
    uri = session.upload_data(str(tmp_path / 'sourcedir.tar.gz'), key_prefix='job/source')
    uri = uri if uri.endswith('.gz') else uri + '/sourcedir.tar.gz'
    credentials = session.boto_session.get_credentials()
    aws = [
        arg
        for pair in {
            'AWS_ENDPOINT_URL_S3': session.boto_session.endpoint_url,
            'AWS_REGION': 'us-east-1',
            'AWS_ACCESS_KEY_ID': credentials.access_key,
            'AWS_SECRET_ACCESS_KEY': credentials.secret_key,
            'AWS_SESSION_TOKEN': credentials.token,
        }.items()
        for arg in ('-e', '{}={}'.format(*pair))
    ]
    root = tmp_path / 'ml'
    opt_ml(root, small_mnist, submit_directory=uri, program='mine.py')
    mounts = [arg for d in ('input', 'model', 'output') for arg in ('-v', f'{root / d}:/opt/ml/{d}')]
    # The host's network, because the stand-in for S3 listens on this machine's loopback only.
    docker(
        'run', '--rm', '--network', 'host', '--add-host', 'algo-1:127.0.0.1', *aws, *mounts, IMAGE, 'train'
    )
    port = free_port()
    with serve(
        '--network',
        'host',
        *aws,
        *mounts,
        '-e',
        'SAGEMAKER_SUBMIT_DIRECTORY=' + uri,
        '-e',
        'SAGEMAKER_PROGRAM=mine.py',
        '-e',
        f'SAGEMAKER_BIND_TO_PORT={port}',
        IMAGE,
        'serve',
        port=port,
    ):
        response = urllib3.PoolManager().request('POST', f'http://127.0.0.1:{port}/invocations', body=b'')
        assert response.data == EXPECTED


def test_a_model_of_awss_image_is_served(aws_python, small_mnist, tmp_path):
    """What Chainer 5.0.0 on Python 3.6 wrote, as a model.tar.gz: the endpoint says what that Chainer says."""
    subprocess.run(
        [
            str(aws_python),
            script.__file__,
            '--epochs',
            '1',
            '--train',
            str(small_mnist / 'train'),
            '--test',
            str(small_mnist / 'test'),
            '--model-dir',
            str(tmp_path),
            '--output-data-dir',
            str(tmp_path),
        ],
        check=True,
    )
    with tarfile.open(tmp_path / 'model.tar.gz', 'w:gz') as tar:
        tar.add(tmp_path / 'model.npz', 'model.npz')
    code = (
        'import sys, numpy as np, chainer; import chainer_mnist_single_machine as s; '
        'np.save("expected", s.model_fn(".")(np.load(sys.argv[1])["images"][:100]).array)'
    )
    subprocess.run(
        [str(aws_python), '-c', code, str(small_mnist / 'test' / 'test.npz')],
        check=True,
        cwd=str(tmp_path),
        env={'PYTHONPATH': str(pathlib.Path(script.__file__).parent)},
    )
    session = open_session(embedded=True, serving_port=free_port())
    try:
        model = ChainerModel(
            model_data=session.upload_data(str(tmp_path / 'model.tar.gz')),
            image_uri=IMAGE,
            role='arn:aws:iam::123456789012:role/SageMakerRole',
            entry_point=script.__file__,
            sagemaker_session=session,
        )
        with np.load(small_mnist / 'test' / 'test.npz') as test:
            prediction = model.deploy(1, 'local').predict(test['images'][:100])
        np.testing.assert_allclose(prediction, np.load(tmp_path / 'expected.npy'), rtol=1e-4, atol=1e-4)
    finally:
        session.close()


def test_the_image_holds_what_it_promises():
    code = (
        'import sys, chainer, numpy, matplotlib, scipy; from mpi4py import MPI; '
        'print(*sys.version_info[:2], chainer.__version__, numpy.__version__, MPI.COMM_WORLD.size)'
    )
    assert docker('run', '--rm', IMAGE, 'python', '-c', code).split() == ['3', '13', '7.8.1', '2.5.5', '1']
    code = (
        'from mpi4py.MPI import COMM_WORLD as comm; ranks = comm.gather(comm.rank); comm.rank or print(ranks)'
    )
    assert (
        docker('run', '--rm', IMAGE, 'mpirun', '--allow-run-as-root', '-n', '2', 'python', '-c', code)
        == '[0, 1]\n'
    )
    assert 'No broken requirements' in docker('run', '--rm', IMAGE, 'pip', 'check')
    assert int(docker('image', 'inspect', '--format', '{{.Size}}', IMAGE)) < 600e6


def test_the_cpu_quota_sets_the_number_of_workers():
    code = 'from cpus import cpus; print(cpus())'
    assert docker('run', '--rm', '--cpus', '1', IMAGE, 'python', '-c', code) == '1\n'
    assert docker('run', '--rm', '--cpus', '1.5', IMAGE, 'python', '-c', code) == '2\n'


def test_training_in_the_image_is_fast_and_uses_the_quota(tmp_path):
    (tmp_path / 'code').mkdir()
    (tmp_path / 'code' / 'mine.py').write_text(
        'import ctypes, os, chainer_fast, numpy\n'
        'core = ctypes.CDLL(numpy._core._multiarray_umath.__file__).scipy_openblas_get_corename64_\n'
        'core.restype = ctypes.c_char_p\n'
        'print("RESULT", os.environ["OPENBLAS_NUM_THREADS"], os.environ["GLIBC_TUNABLES"], '
        'hasattr(chainer_fast, "loops"), core().decode())\n'
    )
    for directory in 'input/config', 'input/data', 'model', 'output/data':
        (tmp_path / directory).mkdir(parents=True)
    config = tmp_path / 'input' / 'config'
    (config / 'hyperparameters.json').write_text(
        json.dumps({'sagemaker_program': 'mine.py', 'sagemaker_submit_directory': '/opt/ml/code'})
    )
    (config / 'resourceconfig.json').write_text(
        json.dumps({'current_host': 'algo-1', 'hosts': ['algo-1'], 'network_interface_name': 'eth0'})
    )
    (config / 'inputdataconfig.json').write_text('{}')
    for options, fast in ((), True), (('--env', 'CHAINER_FAST=0'), False):
        log = docker(
            'run',
            '--rm',
            '--hostname',
            'algo-1',
            '--cpus',
            '1',
            *options,
            '-v',
            f'{tmp_path}:/opt/ml',
            IMAGE,
            'train',
        )
        result = re.search(rf'RESULT 1 glibc.malloc.hugetlb=1 {fast} (.*)', log)
        assert result[1] != 'Prescott'  # which OpenBLAS takes CPUs for that it does not know
