"""The server answers bad, too large and broken requests with a status and a sentence, and goes on."""

import json
import os
import pickle
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support import CSV, JSON, NPY, SCRIPT, Canary, http, npy, post


def header(text, version=1):
    text = text.encode() + b'\n'
    return b'\x93NUMPY' + bytes([version, 0]) + len(text).to_bytes(2 * version, 'little') + text


ONE = np.zeros((1, 784), np.float32)
BAD = [
    (b'', NPY, 'not valid application/x-npy'),
    (b'abc', NPY, 'not valid application/x-npy'),
    (npy(ONE)[:-1], NPY, 'does not fill'),
    (npy(ONE) + b'x', NPY, 'does not fill'),
    (npy(ONE)[:40], NPY, 'not valid'),
    (header("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 784)}"), NPY, 'does not fill'),
    (header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -784)}") + ONE.tobytes(), NPY, 'does not fill'),
    (header("{'descr': '<f4', 'fortran_order': False, 'shape': ("), NPY, 'not valid'),
    (header("{'descr': '<f4'}"), NPY, 'not valid'),
    (header("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}") + b'\0' * 8, NPY, 'dtype'),
    (npy(np.array([object()]), allow_pickle=True), NPY, 'dtype'),
    (npy(np.array(['1'])), NPY, 'dtype'),
    (npy(ONE.astype(np.complex64)), NPY, 'dtype'),
    (npy(ONE.astype([('a', 'f4')])), NPY, 'dtype'),
    (npy(ONE.astype(np.uint8)), NPY, 'dtype uint8'),
    (npy(ONE[:, :10]), NPY, 'shape (1, 10)'),
    (npy(ONE.reshape(2, 392)), NPY, 'shape (2, 392)'),
    (npy(np.float32(1)), NPY, 'single number'),
    (npy(ONE + np.nan), NPY, 'NaN'),
    (npy(ONE.astype('f8') + 1e300), NPY, 'too large'),
    (b'\xff\xfe', JSON, 'not valid application/json'),
    (b'{"a": 1}', JSON, 'lists of numbers'),
    (b'null', JSON, ''),
    (b'3', JSON, 'single number'),
    (b'[[1, 2], [3]]', JSON, 'not valid'),
    (b'["a"]', JSON, 'not valid'),
    (b'[NaN]', JSON, 'not valid application/json'),
    (b'[1e999]', JSON, 'infinity'),
    (b'[' * 100000, JSON, 'depth limit'),
    (b'[1, 2', JSON, 'not valid'),
    (b'', CSV, 'no rows'),
    (b'a,b', CSV, 'not valid'),
    (b'1,2\n3', CSV, 'not valid'),
    (b'1,,2', CSV, 'not valid'),
    (b'\xff', CSV, 'not valid'),
    (b'1,"2', CSV, ''),
]


@pytest.mark.parametrize('body, content_type, sentence', BAD, ids=map(str, range(len(BAD))))
def test_bad_bodies_get_400_with_a_sentence(url, images, body, content_type, sentence):
    response = post(url, body, content_type)
    assert response.status == 400, response.data
    assert sentence in response.data.decode()
    assert response.headers['Content-Type'].startswith('text/plain')
    assert post(url, npy(images)).status == 200


def test_other_refusals(url, images):
    for response, status, sentence in (
        (post(url, npy(images), 'image/gif'), 415, 'Content-Type must be one of'),
        (post(url, npy(images), accept='image/png'), 406, 'Accept must allow one of'),
        (http.request('GET', url + '/invocations'), 405, 'not allowed'),
        (http.request('GET', url + '/other'), 404, 'GET /ping and POST /invocations'),
    ):
        assert response.status == status and sentence in response.data.decode()


def test_too_large_a_body_gets_413(serving, code, model):
    with serving(code, SCRIPT.name, model, SAGEMAKER_MAX_PAYLOAD_IN_MB='1') as url:
        body = npy(np.zeros((400, 784), np.float32))  # 1.2 MB
        for chunks in lambda: body, lambda: iter([body]), lambda: iter([body[:600000], body[600000:]]):
            for _ in range(5):
                response = post(url, chunks())
                assert response.status == 413 and 'larger than 1 MB' in response.data.decode()
                # and the connection stays good
                assert post(url, npy(np.zeros((300, 784), np.float32))).status == 200


def test_bodies_beyond_the_memory_get_503(serving, connect, code, model):
    """The server holds 16 bodies of the largest size; /ping still answers, and later all requests do."""
    with serving(code, SCRIPT.name, model, SAGEMAKER_MAX_PAYLOAD_IN_MB='1') as url:
        clients = [connect(url) for _ in range(20)]
        for client in clients:
            client.sendall(
                b'POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: text/csv\r\n'
                b'Content-Length: 1000000\r\n\r\n' + b'1' * 999999
            )
        time.sleep(1)
        assert http.request('GET', url + '/ping').status == 200
        statuses = []
        for client in clients:
            client.sendall(b'1')
            statuses.append(int(client.recv(4096).split()[1]))
            client.close()
        assert set(statuses) == {400, 503} and 1 <= statuses.count(503) <= 5, statuses
        assert post(url, json.dumps([0.0] * 784), JSON).status == 200


def test_a_pickle_never_runs(url, tmp_path):
    canary = str(tmp_path / 'canary')
    bodies = [pickle.dumps(Canary(canary)), npy(np.array([Canary(canary)], dtype=object), allow_pickle=True)]
    pickle.loads(bodies[0]).close()
    assert os.path.exists(canary)  # it does sing
    os.remove(canary)
    for body in bodies:
        for content_type in NPY, JSON, CSV:
            assert post(url, body, content_type).status == 400
    assert not os.path.exists(canary)


@given(
    body=st.one_of(
        st.binary(max_size=200),
        st.binary(max_size=64).map(lambda b: npy(ONE)[:10] + b),
        st.text(max_size=80).map(header),
        st.recursive(st.none() | st.floats() | st.text(max_size=3), lambda x: st.lists(x, max_size=4)).map(
            lambda x: json.dumps(x).encode()
        ),
    ),
    content_type=st.sampled_from([NPY, JSON, CSV]),
)
@example(body=b'\r\0', content_type='text/csv')  # csv.Error is no ValueError
@example(body=b'[1' + b'0' * 400 + b']', content_type='application/json')  # nor is OverflowError
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_generated_bodies_never_get_5xx(url, body, content_type):
    response = post(url, body, content_type)
    assert response.status in (200, 400), response.data
    assert response.data
