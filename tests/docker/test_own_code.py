"""Users' own scripts may fail, need packages, and come from S3."""

import re

import pytest
from support import IMAGE, containers, docker, make_estimator, pack, post, run, serve

FAIL = """
import sys
if __name__ == '__main__':
    print('a line on stdout')
    raise ValueError('the dog ate my weights')
"""


def test_a_failing_script_is_reported_with_its_traceback(session, inputs, tmp_path):
    (tmp_path / 'fail.py').write_text(FAIL)
    with pytest.raises(RuntimeError, match='Training job .* failed') as error:
        make_estimator(session, tmp_path / 'fail.py').fit(inputs)
    where = 'Traceback .*File "/opt/ml/code/fail.py", line 5.*ValueError: the dog ate my weights'
    assert re.search(where, str(error.value), re.DOTALL)
    assert containers(session, 'exited', 'created') == []


FAILS_DEEP_DOWN = """
import atexit
import sys
import time

def first(n):
    second(n)

def second(n):
    if n == 0:
        raise ValueError('the dog ate my weights')
    first(n - 1)

print('a line on stdout')
atexit.register(time.sleep, 2)  # the first process to end has mpirun kill the other
atexit.register(print, file=sys.stderr)  # an empty line after the traceback
first(20)
"""
MPI = dict(sagemaker_use_mpi=True, sagemaker_num_processes=2, sagemaker_process_slots_per_host=2)


@pytest.mark.parametrize('processes', [1, 2])
def test_a_failing_job_by_hand_writes_the_failure_file(opt_ml, processes):
    root = opt_ml(sagemaker_program='fail.py', **MPI if processes == 2 else {})
    (root / 'code' / 'fail.py').write_text(FAILS_DEEP_DOWN)
    secret = '-e SAGEMAKER_MPI_SECRET=secret'
    done = run(*f'docker run --rm --hostname algo-1 {secret} -v {root}:/opt/ml {IMAGE} train'.split())
    assert done.returncode != 0
    failure = (root / 'output' / 'failure').read_text()
    assert 'ValueError: the dog ate my weights' in failure[:1024]  # which SageMaker shows as FailureReason
    assert failure.count('Traceback') == processes and 'sagemaker-training-toolkit' not in failure
    assert done.stdout.count('a line on stdout') == processes
    assert done.stderr.count('Traceback') == 2 * processes  # once live, once in the toolkit's report


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
EXPECTED = b'written where there is iniconfig, read where there is iniconfig'


@pytest.fixture
def template(tmp_path):
    """Return a directory with a user's script and requirements.txt."""
    (tmp_path / 'template').mkdir()
    (tmp_path / 'template' / 'mine.py').write_text(USES_A_REQUIREMENT)
    (tmp_path / 'template' / 'requirements.txt').write_text('iniconfig==2.0.0\n')
    return tmp_path / 'template'


def test_the_users_requirements_are_installed(session, inputs, template):
    estimator = make_estimator(session, 'mine.py', dict(source_dir=str(template), dependencies=[]))
    estimator.fit({'train': inputs['test']})
    predictor = estimator.deploy(1, 'local')
    try:
        response = session.sagemaker_runtime_client.invoke_endpoint(b'', predictor.endpoint_name)
        assert response['Body'].read() == EXPECTED
    finally:
        predictor.delete_endpoint()


def test_code_and_requirements_from_s3_as_on_aws(session, small_mnist, template, opt_ml, tmp_path):
    """As on AWS the container itself fetches s3://.../sourcedir.tar.gz, for `train` and for `serve`."""
    uri = session.upload_data(pack(tmp_path / 'sourcedir.tar.gz', *template.iterdir()), key_prefix='job/source')
    credentials = session.boto_session.get_credentials()
    environment = {
        'AWS_ENDPOINT_URL_S3': session.boto_session.endpoint_url,
        'AWS_REGION': 'us-east-1',
        'AWS_ACCESS_KEY_ID': credentials.access_key,
        'AWS_SECRET_ACCESS_KEY': credentials.secret_key,
        'AWS_SESSION_TOKEN': credentials.token,
    }
    root = opt_ml(small_mnist, sagemaker_submit_directory=uri, sagemaker_program='mine.py')
    # The host's network, because the stand-in for S3 listens on this machine's loopback only.
    options = ['--network host', *(f'-e {name}={value}' for name, value in environment.items())]
    options += [f'-v {root}/{directory}:/opt/ml/{directory}' for directory in ('input', 'model', 'output')]
    options = ' '.join(options)
    docker(f'run --rm --add-host algo-1:127.0.0.1 {options} {IMAGE} train')
    port = '-e SAGEMAKER_BIND_TO_PORT={port}'
    with serve(f'{options} -e SAGEMAKER_SUBMIT_DIRECTORY={uri} {port}', 'mine.py') as (_, url):
        assert post(url, b'').data == EXPECTED
