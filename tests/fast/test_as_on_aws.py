"""The server, without Docker, keeps the behaviour on which scripts and clients of AWS's container rely."""

import json

import numpy as np
import pytest
from support import CSV, JSON, NPY, http, load, npy, post


@pytest.fixture
def mine(serving, tmp_path):
    """Return a function that serves a script of some lines."""

    def mine(script, **options):
        (tmp_path / 'mine.py').write_text(script)
        return serving(tmp_path, 'mine.py', **options)

    return mine


TYPES = """
def model_fn(model_dir): pass
def input_fn(input_data, content_type): return f'{type(input_data).__name__} {content_type}'
def predict_fn(data, model): return data
def output_fn(prediction, accept): return f'{prediction} {accept}', 'text/plain'
"""


def test_input_fn_gets_text_for_json_and_csv_and_output_fn_a_type(mine):
    with mine(TYPES) as url:
        assert (
            post(url, b'[1]', 'application/json; charset=utf-8', None).data == b'str application/json application/json'
        )
        assert post(url, b'1', CSV, '*/*').data == b'str text/csv application/json'
        assert post(url, b'1', 'a/b', 'text/csv').data == b'bytes a/b text/csv'
        response = post(url, b'\xff', JSON)
        assert response.status == 400 and b'UTF-8' in response.data


STRUCTURES = """
import numpy as np
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response
def model_fn(model_dir):
    return {'dict': {'scores': np.arange(2.0), 'best': np.int64(1)}, 'ragged': [np.arange(1), np.arange(2)]}
def input_fn(input_data, content_type): return input_data
def predict_fn(data, model):
    if data == 'teapot':
        raise HTTPException(response=Response('short', 418))
    if data == 'unsendable':
        raise HTTPException(response=Response('', headers={'A': '\\1'}))
    if data == 'bare':
        raise HTTPException('why')
    return model[data]
"""


def test_what_is_no_array_becomes_json(mine):
    with mine(STRUCTURES) as url:
        assert json.loads(post(url, b'dict', CSV, JSON).data) == {'scores': [0, 1], 'best': 1}
        assert json.loads(post(url, b'ragged', CSV, JSON).data) == [[0], [0, 1]]
        assert post(url, b'dict', CSV, NPY).status == 500
        answer = post(url, b'teapot', CSV)
        assert (answer.status, answer.data) == (418, b'short')
        answer = post(url, b'bare', CSV)  # an HTTPException without a code
        assert (answer.status, answer.data) == (500, b'why\n')
        assert post(url, b'unsendable', CSV).status == 500
        assert post(url, b'dict', CSV, JSON).status == 200


ECHO = """
def model_fn(model_dir): return lambda x: x
"""


def test_a_csv_of_one_column_is_a_vector(mine):
    with mine(ECHO) as url:
        for body, shape in (b'1\n2\n3\n', (3,)), (b'1,2\n', (1, 2)), (b'1', (1,)):
            assert load(post(url, body, CSV).data).shape == shape


def test_boto3s_path_with_the_endpoints_name(mine):
    with mine(ECHO) as url:
        response = http.request(
            'POST', f'{url}/endpoints/my-name/invocations', body=npy(np.ones(2)), headers={'Content-Type': NPY}
        )
        assert (response.status, response.data) == (200, b'[1.0,1.0]')
        for path in '/endpoints/my-name', '/endpoints//invocations', '/endpoints/a/b/invocations':
            assert http.request('POST', url + path, body=b'[1]').status == 404


FRAMEWORK = """
from sagemaker_containers.beta.framework import content_types, encoders, modules, worker
def model_fn(model_dir): return modules.__name__
def input_fn(input_data, content_type): return encoders.decode(input_data, content_type)
def predict_fn(data, model): return data * 2
def output_fn(prediction, accept):
    encoded = encoders.encode(prediction, accept)
    if accept == content_types.JSON:
        return worker.Response(encoded, accept, status=201)
    return worker.Response(response=encoded, mimetype=accept)
"""


def test_names_of_sagemaker_containers_work_as_their_scripts_use_them(mine):
    with mine(FRAMEWORK) as url:
        answer = post(url, b'[[1, 2]]', JSON, JSON)
        assert (answer.status, json.loads(answer.data)) == (201, [[2, 4]])
        answer = post(url, npy(np.ones((1, 2))), NPY, CSV)
        assert (answer.data, answer.headers['Content-Type'].partition(';')[0]) == (b'2.0,2.0\n', CSV)
        assert post(url, b'1', 'a/b', CSV).status == 415 and post(url, b'[1]', JSON, 'a/b').status == 406
