"""The server predicts waiting requests as a batch if the script says that this does not change the answers."""

import concurrent.futures
import json

import numpy as np
import pytest
import urllib3
from support import JSON, NPY, load, npy, post

MODEL = """
import time

def model(x):
    with open({log!r}, 'a') as log:
        log.write(f'{{len(x)}} ')
    time.sleep(0.1)
    if (x == 13).any():
        raise ValueError('13 is not for me')
    return {scores}

def model_fn(model_dir):
    return model
"""
HOOK = """
def predict_fn(data, model):
    return model(data)
"""
DECLARED = '\nROWS_ARE_INDEPENDENT = True\n'
SLOW = pytest.mark.slow


@pytest.fixture
def ask(serving, tmp_path):
    """Return a function that posts rows at once, one a request: (answers, again, sizes of batches, log)."""

    def ask(scores, hook, rows):
        log, output = tmp_path / 'log', []
        (tmp_path / 'mine.py').write_text(MODEL.format(log=str(log), scores=scores) + hook)
        with serving(tmp_path, 'mine.py', log=output) as url, concurrent.futures.ThreadPoolExecutor(len(rows)) as pool:

            def answer(row):
                response = post(url, json.dumps([row]).encode(), JSON, JSON)
                return json.loads(response.data) if response.status == 200 else response.status

            first = [list(pool.map(answer, rows)) for _ in range(4)]  # the first batches are compared
            log.write_text('')
            second = list(pool.map(answer, rows))
            sizes = [int(n) for n in log.read_text().split()]
        assert all(answers == first[0] for answers in first)
        return first[0], second, sizes, output[0]

    return ask


ROWS = [[i, 1] for i in range(10)]


@pytest.mark.slow
@pytest.mark.parametrize(
    'scores, hook, together',
    [
        ('x * 2', DECLARED, True),
        pytest.param('x * 2', HOOK + DECLARED, True, marks=SLOW),
        pytest.param('(x * 2).astype(int)', DECLARED, True, marks=SLOW),  # labels, say
        pytest.param('x * 2', HOOK, False, marks=SLOW),  # it might not be written for rows of others
        ('x * 2', '', False),
        pytest.param('(x * 2).astype(int)', '', False, marks=SLOW),
    ],
)
def test_what_the_script_declares_is_predicted_together(ask, scores, hook, together):
    first, second, sizes, log = ask(scores, hook, ROWS)
    assert first == second == [[[2 * a, 2 * b]] for a, b in ROWS]
    assert sum(sizes) == len(ROWS) and (max(sizes) > 4) == together and (together or set(sizes) == {1})
    assert 'ROWS_ARE_INDEPENDENT' not in log


@pytest.mark.slow
@pytest.mark.parametrize(
    'scores',
    [
        'x * 2 / len(x)',
        pytest.param('x * 2 + x.mean(axis=0) - x[0]', marks=SLOW),
        pytest.param('(x * 2)[:1]', marks=SLOW),
        pytest.param('(x * 2).tolist()', marks=SLOW),
        pytest.param('(x * 2)[None][0] if len(x) == 1 else (x * 2)[:, :1]', marks=SLOW),
    ],
)
def test_a_mistaken_declaration_is_noticed_logged_and_dropped(ask, scores):
    first, second, sizes, log = ask(scores, HOOK + DECLARED, ROWS)
    assert first == second == [[[2 * a, 2 * b]] for a, b in ROWS]
    assert set(sizes) == {1} and log.count('ROWS_ARE_INDEPENDENT') == 1


@pytest.mark.slow
@pytest.mark.parametrize('hook, status', [('', 400), (HOOK, 500)])
def test_one_bad_request_fails_alone(ask, hook, status):
    rows = [*ROWS, [13, 1], [1, 2, 3], *ROWS]
    first, second, sizes, _ = ask('x * 2', hook + DECLARED, rows)
    expected = [[[2 * n for n in row]] for row in rows]
    expected[10] = status
    assert first == second == expected and max(sizes) > 4


FORWARDS = """
import numpy as np

W = np.random.RandomState(0).rand(4, 800, 10) - 0.5

def scale(x):
    if x.max() > 1:
        x = x / 255
    return x

def invert(x):
    if x.mean() > 0.5:
        x = 1 - x
    return x

def standardise(x):
    return (x - x.mean()) / x.std()

def normalise(x):
    return x / x.max()

def model_fn(model_dir):
    forwards = scale, invert, standardise, normalise
    return lambda x: forwards[x.shape[1] % 4](x) @ W[0, : x.shape[1]]
"""


@pytest.mark.slow
def test_no_answer_depends_on_a_neighbour(serving, tmp_path):
    """Real models' forwards look at the whole array: with 16 clients each answer is the one to the request alone."""
    (tmp_path / 'mine.py').write_text(FORWARDS)
    rng = np.random.RandomState(2)
    images = [rng.rand(1, 784 + i % 4) * rng.choice([0.3, 0.9, 1.2, 200]) for i in range(64)]
    bodies = [npy(image.astype(np.float32)) for image in images]
    with serving(tmp_path, 'mine.py') as url, concurrent.futures.ThreadPoolExecutor(16) as clients:
        alone = [post(url, body).data for body in bodies]
        order = [i % 64 for i in range(1600)]
        answers = list(clients.map(lambda i: post(url, bodies[i]).data, order))
    differ = [i % 4 for i, answer in zip(order, answers) if answer != alone[i]]
    assert not differ, [differ.count(i) for i in range(4)]


def test_each_of_many_clients_gets_its_own_answer(url):
    """Concurrent good and broken requests get the same answers as alone, within rounding."""
    rng = np.random.RandomState(1)
    bodies = [npy(rng.rand(1 + i % 3, 784).astype(np.float32)) for i in range(96)]
    alone = [load(post(url, body).data) for body in bodies]

    def run(client):
        pool = urllib3.connection_from_url(url, retries=False)
        headers = {'Content-Type': NPY, 'Accept': NPY}
        for i in np.random.RandomState(client).permutation(96)[:30]:
            if i % 8 == 0:
                assert pool.urlopen('POST', '/invocations', bodies[i][:-1], headers).status == 400
            answer = pool.urlopen('POST', '/invocations', bodies[i], headers)
            np.testing.assert_allclose(load(answer.data), alone[i], rtol=1e-4, atol=1e-6)
        return True

    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        assert all(pool.map(run, range(32)))


def test_whatever_the_script_raises_is_an_answer_and_others_come_after_it(serving, tmp_path):
    raises = 'class Odd(BaseException):\n    pass\n\ndef predict_fn(data, model):\n    raise Odd\n'
    (tmp_path / 'mine.py').write_text('def model_fn(model_dir):\n    pass\n\n' + raises)
    with serving(tmp_path, 'mine.py') as url:
        for _ in range(3):
            assert post(url, b'[1]', JSON, JSON).status == 500
