"""The server, without Docker, supports its formats, content negotiation and the user's functions."""

import contextlib
import io
import json
import os
import re
import runpy

import nbformat
import numpy as np
import pytest
import urllib3
from support import CSV, JSON, NPY, SERVER, TUTORIAL, http, load, npy, post, python, wait_for

import chainer_mnist_single_machine as script

DECODE = {
    NPY: load,
    JSON: lambda body: np.array(json.loads(body)),
    CSV: lambda body: np.loadtxt(io.BytesIO(body), delimiter=',', ndmin=2),
}


@pytest.fixture(scope='module')
def scores(model, images):
    return script.model_fn(str(model))(images).array


def csv(array):
    return '\n'.join(','.join(map(str, row)) for row in array).encode()


@pytest.mark.parametrize('accept', DECODE)
@pytest.mark.parametrize('content_type', DECODE)
def test_every_format_in_and_out(url, images, scores, content_type, accept):
    body = {NPY: npy(images), JSON: json.dumps(images.tolist()).encode(), CSV: csv(images)}
    response = post(url, body[content_type], content_type, accept)
    assert response.status == 200 and response.headers['Content-Type'].startswith(accept)
    np.testing.assert_allclose(DECODE[accept](response.data), scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('shape', [(784,), (1, 784), (3, 784), (3, 28, 28), (3, 1, 28, 28), (0, 784)])
@pytest.mark.parametrize('dtype', ['<f4', '>f4', '<f8', '<f2'])
def test_every_shape_and_floating_dtype(url, images, scores, shape, dtype):
    count = 1 if shape == (784,) else shape[0]
    array = images[:count].reshape(shape).astype(dtype)
    response = post(url, npy(array))
    assert response.status == 200, response.data
    np.testing.assert_allclose(load(response.data), scores[:count], atol=1e-2)


def test_fortran_order_and_npy_version_2(url, images, scores):
    response = post(url, npy(np.asfortranarray(images)))
    np.testing.assert_allclose(load(response.data), scores, atol=1e-4)
    stream = io.BytesIO()
    np.lib.format.write_array(stream, images, version=(2, 0))
    np.testing.assert_allclose(load(post(url, stream.getvalue()).data), scores, atol=1e-4)


@pytest.mark.parametrize(
    'accept, answered',
    [
        (None, JSON),
        ('*/*', JSON),
        ('text/*', CSV),
        ('application/x-npy, */*;q=0.1', NPY),
        ('image/png, text/csv;q=0.5', CSV),
    ],
)
def test_accept_is_negotiated(url, images, accept, answered):
    response = post(url, npy(images), accept=accept)
    assert response.status == 200 and response.headers['Content-Type'].startswith(answered)


def test_a_content_type_may_have_parameters_and_defaults_to_json(url, images):
    body = json.dumps(images.tolist()).encode()
    assert post(url, body, 'application/json; charset=utf-8').status == 200
    assert post(url, body, None).status == 200


HOOKS = """
import os
import numpy as np

def model_fn(model_dir):
    with open(os.path.join(model_dir, 'loads'), 'a') as f:
        f.write('%d\\n' % os.getpid())
    return 'a model'

def input_fn(input_data, content_type):
    if input_data == b'fail':
        raise KeyError('a bug')
    return input_data.decode() + '|' + content_type

def predict_fn(data, model):
    return data + '|' + model

def output_fn(prediction, accept):
    return (prediction + '|' + accept).upper(), 'text/x-own'
"""


def test_the_users_functions_win_and_model_fn_runs_once_per_worker(serving, tmp_path):
    (tmp_path / 'mine.py').write_text(HOOKS)
    with serving(tmp_path, 'mine.py', workers=2) as url:
        for _ in range(20):
            response = post(url, b'body', 'a/b', 'c/d')
            assert (response.status, response.data) == (200, b'BODY|A/B|A MODEL|C/D')
            assert response.headers['Content-Type'].startswith('text/x-own')
        response = post(url, b'fail', 'a/b', 'c/d')
        assert response.status == 500 and b'log' in response.data and b'bug' not in response.data
        assert post(url, b'body', 'a/b', 'c/d').status == 200
        # /ping may answer before the other worker is up.
        wait_for(lambda: len((tmp_path / 'loads').read_text().split()) >= 2, 20)
        assert len(set((tmp_path / 'loads').read_text().split())) == 2


def test_the_notebooks_input_fn_says_what_is_wrong(serving, tmp_path):
    cells = nbformat.read(TUTORIAL, as_version=4).cells
    (example,) = re.findall(r'```python\n(from werkzeug.*?)```', ''.join(cell.source for cell in cells), re.DOTALL)
    rest = 'import numpy as np\ndef model_fn(model_dir):\n    return lambda data: data.sum(axis=1)\n'
    (tmp_path / 'mine.py').write_text(rest + example)
    with serving(tmp_path, 'mine.py') as url:
        right = post(url, bytes([51]) * 1568, 'application/octet-stream', JSON)
        assert right.status == 200 and json.loads(right.data) == pytest.approx([156.8, 156.8])
        wrong = post(url, bytes(1000), 'application/octet-stream')
        assert wrong.status == 400 and wrong.data.strip() == b'Send 784 bytes for each image.'
        assert post(url, bytes(784), 'image/gif').status == 415


OUTPUTS = """
import numpy as np

def model_fn(model_dir):
    pass

def predict_fn(data, model):
    return data

def output_fn(prediction, accept):
    array = np.ones(2)
    wrong = array, array.tolist(), (b'yes', 5), ('yes', 'a/b\\r\\nX: y')
    right = ('yes', None), (bytearray(b'yes'), 'a/b'), 'yes'
    return (wrong + right)[int(prediction[0])]
"""


def test_an_output_fn_that_returns_what_is_no_body_gets_500_and_the_log_says_why(serving, tmp_path):
    (tmp_path / 'mine.py').write_text(OUTPUTS)
    log = []
    with serving(tmp_path, 'mine.py', log=log) as url:
        answers = [post(url, b'[%d]' % i, JSON, JSON) for i in range(7)]
    assert [response.status for response in answers] == 4 * [500] + 3 * [200]
    assert [response.data for response in answers[4:]] == 3 * [b'yes']
    assert [response.headers['Content-Type'] for response in answers[4:]] == [JSON, 'a/b', JSON]
    assert 'output_fn must return bytes or str' in log[0] and 'ndarray' in log[0]
    assert log[0].count('A request failed') == 4


def test_a_refused_method_is_told_which_ones_are_allowed(url):
    for method, path, allowed in ('GET', '/invocations', 'POST'), ('POST', '/ping', 'GET, HEAD'):
        response = http.request(method, url + path)
        assert response.status == 405 and response.headers['Allow'] == allowed
        assert response.headers['Content-Type'].startswith('text/plain')


@pytest.mark.slow
def test_the_users_files_may_have_our_names(serving, tmp_path):
    names = ['serving', 'training', 'formats', 'hooks', 'cpus', 'worker']
    for name in names:
        (tmp_path / f'{name}.py').write_text(f'NAME = {name!r}')
    (tmp_path / 'mine.py').write_text(
        f'import {", ".join(names)}\n'
        f'def model_fn(model_dir): return [m.NAME for m in ({", ".join(names)})]\n'
        'def predict_fn(data, model): return model\n'
    )
    with serving(tmp_path, 'mine.py') as url:
        assert json.loads(post(url, b'[1]', JSON, JSON).data) == names


@pytest.mark.slow
def test_a_killed_worker_is_replaced(serving, tmp_path):
    (tmp_path / 'mine.py').write_text(HOOKS)
    with serving(tmp_path, 'mine.py') as url:
        os.kill(int((tmp_path / 'loads').read_text()), 9)
        http.clear()

        def answered():
            with contextlib.suppress(urllib3.exceptions.HTTPError):
                return post(url, b'body', 'a/b', 'c/d').status == 200

        wait_for(answered, 20)
        assert len((tmp_path / 'loads').read_text().split()) == 2


FOUND = """
import importlib.machinery, importlib.util, os, sys
names = {file.partition('.')[0] for file in os.listdir(sys.argv[1])} - {'__pycache__'}
found = [name for name in sorted(names) if importlib.machinery.PathFinder.find_spec(name, [sys.argv[1]])]
print(*found, importlib.util.find_spec('chainer'))
"""


def test_the_servers_directory_holds_its_modules_only(tmp_path):
    """Beside container/chainer `import chainer` finds an empty package where there is no Chainer."""
    found = python('-S', '-c', FOUND, SERVER, cwd=tmp_path, env={'PYTHONPATH': str(SERVER)})
    assert found.stdout.split() == ['sagemaker_chainer_container', 'sagemaker_containers', 'None'], found


def test_what_is_set_is_left_and_the_cpus_are_shared(monkeypatch):
    cpus = runpy.run_path(str(SERVER / 'sagemaker_chainer_container' / 'cpus.py'))
    settings = cpus['blas_settings']
    for name in settings() | settings(1000):
        monkeypatch.delenv(name, raising=False)
    assert settings()['OPENBLAS_NUM_THREADS'] == str(cpus['cpus']())
    assert settings(1000)['OPENBLAS_NUM_THREADS'] == '1'
    monkeypatch.setenv('OPENBLAS_NUM_THREADS', '3')
    monkeypatch.setenv('OPENBLAS_THREAD_TIMEOUT', '')
    assert 'OPENBLAS_NUM_THREADS' not in settings() and settings()['OPENBLAS_THREAD_TIMEOUT'] == '20'
