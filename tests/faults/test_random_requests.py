"""The endpoint survives random bad requests."""

import http.client
import json
import pickle
import struct
import time

import numpy as np
from support import CSV, JSON, NPY, Canary, docker, load, npy

REQUESTS = 20000
TYPES = [NPY, JSON, CSV, 'text/csv; charset=utf-16', 'application/x-npy;', 'text/html', '', '*/*']
TYPES += ['application/JSON', 'multipart/form-data; boundary=x', 'a' * 3000, '\u00e9;q="']
SHAPES = [(784,), (1, 784), (3, 784), (2, 28, 28), (0, 784), (), (5, 7), (1, 1, 1, 784)]
CLAIMS = '(-1, 784) ; (2**40, 2**40) ; (0, 10**30) ; 784 ; (1.5,) ; (1, 784) ; (True, 784)'.split(' ; ')
CLAIMS += ['(' * 90 + ')' * 90, '(' + '1,' * 70 + ')', *(f'({10**i},)' for i in range(1, 30, 7))]
DTYPES = """'<f4' '|O' '<f8' [('a','<f4')] '<M8[s]' '|S9' '<U9' '|V4' 'x' 1 '<f4'*10**9""".split()
CANARY = '/tmp/canary'


def some(rng, n):
    return rng.randbytes(rng.randrange(n))


def changed(rng, body, times, where=10**6):
    body = bytearray(body)
    for _ in range(times):
        body[rng.randrange(min(len(body), where))] = rng.randrange(256)
    return body


def good(rng):
    array = np.asarray(rng.random() * np.ones(rng.choice(SHAPES)))
    return npy(array.astype(rng.choice(['<f4', '>f8', '<i8', '|b1', '<f2', '<c8'])))


def header(text, version=1, length=None):
    size = struct.pack('<H' if version == 1 else '<I', len(text) if length is None else length)
    return b'\x93NUMPY' + bytes([version, 0]) + size + text.encode()


# Each returns a body and its Content-Type; some may be good by chance.


def random_bytes(rng):
    return some(rng, 3000), rng.choice(TYPES)


def changed_npy(rng):
    return changed(rng, good(rng), rng.randrange(1, 6), rng.choice([12, 140, 10**6])), NPY


def cut_npy(rng):
    body = good(rng)
    return body[: rng.randrange(len(body))] if rng.random() < 0.7 else body + some(rng, 50), NPY


def lying_npy_header(rng):
    order, padding = rng.choice(['True', 'False', '1', 'None']), ' ' * rng.choice([0, 30, 9000, 35000])
    shape = rng.choice(CLAIMS)
    text = f"{{'descr': {rng.choice(DTYPES)}, 'fortran_order': {order}, 'shape': {shape}}}{padding}\n"
    return header(text, rng.choice([1, 1, 2, 3, 9]), rng.choice([None, None, 0, 65535])) + some(rng, 4000), NPY


def pickles(rng):
    pickled, text = pickle.dumps(Canary(CANARY)), "{'descr': '|O', 'fortran_order': False, 'shape': (1,)}\n"
    whole = npy(np.array([Canary(CANARY)], object), allow_pickle=True)
    body = rng.choice([whole, pickled, header(text) + pickled])
    return body, rng.choice([NPY, NPY, 'application/python-pickle', JSON])


def nan_or_infinity(rng):
    array = np.ones((2, 784), rng.choice(['<f4', '<f8']))
    array[rng.randrange(2), rng.randrange(784)] = rng.choice([np.nan, np.inf, -np.inf])
    return rng.choice([(npy(array), NPY), (json.dumps(array.tolist()).encode(), JSON)])


def other_dtypes(rng):
    dtype = rng.choice('<i4 |u1 |b1 <c16 <U3 <M8[s] |S2 <i8'.split())
    return npy(np.zeros((1, 784), dtype)), NPY


def deep_json(rng):
    n = rng.randrange(1, 60000)
    ends = rng.choice([b'', b'0', b']' * n, b'0' + b']' * n])
    return (b'{"a":' * n + b'1' + b'}' * n if rng.random() < 0.3 else b'[' * n + ends), JSON


VALUES = [[0.5] * 784, [[0.5] * 784] * 2, {'instances': [1]}, [1, [2]], 'text', None, [1e999, -1e999],
          [True, None], [[]], [['0.5'] * 784], 1e30]  # fmt: skip


def changed_json(rng):
    body = changed(rng, json.dumps(rng.choice(VALUES)).encode(), rng.randrange(4))
    if rng.random() < 0.1:
        body = b'[' + b'9' * rng.randrange(1, 9000) + b']'
    return body, rng.choice([JSON, '', 'text/json'])


def bad_csv(rng):
    ones, quotes, lines = rng.randrange(1, 200000), rng.randrange(1, 5000), rng.randrange(1, 20000)
    bodies = [b'1,' * ones, b'"' * quotes, b'1,2\n3\n', b'\r\0\n', b'a,b\n', b'1\n' * lines, b'nan,inf\n']
    return rng.choice([*bodies, b'"' + b'x' * 140000 + b'"', b',' * 783, some(rng, 800)]), CSV


def encodings(rng):
    text, encoding = (rng.choice(['[0.5]', '1,2\n', '\ufeff[1]', '\ud83d\ude00']), 'utf-16 utf-32 utf-7 utf-8-sig')
    return text.encode(rng.choice(encoding.split()), 'surrogatepass') + some(rng, 4), rng.choice([JSON, CSV])


def types(rng):
    return good(rng), rng.choice(TYPES)


BODIES = [random_bytes, changed_npy, cut_npy, lying_npy_header, pickles, nan_or_infinity, other_dtypes]
BODIES += [deep_json, changed_json, bad_csv, encodings, types]


def bad_body(rng):
    """Return a random bad request: (kind, body, Content-Type, Accept)."""
    kind = rng.choice(BODIES)
    body, content_type = kind(rng)
    accept = rng.choice(TYPES if kind is types else [NPY, JSON, CSV, '*/*', ''])
    heads = (text.encode().decode('latin-1') for text in (content_type, accept))
    return kind.__name__.replace('_', ' '), bytes(body), *heads


LINES = [b'POST\r\n\r\n', b'GET /ping HTTP/9.9\r\n\r\n', b'P\0ST / HTTP/1.1\r\n\r\n', b'\r\n' * 50,
         b'POST ' + b'/a' * 9000 + b' HTTP/1.1\r\n\r\n', b'GET http://[::1 HTTP/1.1\r\nHost: x\r\n\r\n',
         b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n', b'\x16\x03\x01']  # fmt: skip
START = b'POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-npy\r\n'
LENGTH = b'Content-Length: '
HEADERS = [LENGTH + b'-5', LENGTH + b'1e3', LENGTH + b'5\r\n' + LENGTH + b'6', LENGTH + b'9' * 400,
           LENGTH + b'5\r\nTransfer-Encoding: chunked', b'Transfer-Encoding: gzip', b'X' * 20000 + b': y',
           b'no colon', b'\r\n'.join([b'A: b'] * 300), LENGTH + b'\xff', b': x', b' folded: x',
           b'Expect: 200-ok\r\n' + LENGTH + b'1']  # fmt: skip
CHUNKED = b'Transfer-Encoding: chunked\r\n\r\n'
CHUNKS = [b'zz\r\n', b'-1\r\n', b'5\r\nab\r\n', b'f' * 40 + b'\r\n', b'3\r\nabcXX0\r\n\r\n',
          b'5;' + b'x' * 9000 + b'\r\n', b'\0\r\n']  # fmt: skip


def bad_stream(rng):
    """Return (kind, bytes that are not a valid HTTP request, or only a part of one)."""
    body = some(rng, 400)
    length = len(body) + rng.choice([1, 99, 10**7, 10**13])
    return rng.choice(
        [
            ('random bytes as HTTP', body),
            ('broken request line', rng.choice(LINES) + body),
            ('broken headers', START + rng.choice(HEADERS) + b'\r\n\r\n' + body),
            ('broken chunks', START + CHUNKED + rng.choice(CHUNKS) + body),
            ('half-closed', START + LENGTH + b'%d\r\n\r\n' % length + body),
        ]
    )


def test_bad_requests(served, rng, seed, report):
    """They cause no 5xx, dead worker, unpickling or growth, and get helpful sentences."""
    images = npy(np.random.RandomState(0).rand(3, 784).astype(np.float32))
    connection = served.connect()
    status, expected = served.post(connection, images)
    assert status == 200
    counts, wrong = {}, []

    def answered(i):
        """Send a bad request; return (kind, request, status, sentence)."""
        nonlocal connection
        if i % 10 == 0:
            kind, data = bad_stream(rng)
            return kind, data, *served.send(data)
        kind, *request = bad_body(rng)
        try:
            return kind, request, *served.post(connection, *request)
        except (http.client.HTTPException, OSError):  # closed, say for a header that it cannot read
            connection.close()
            connection = served.connect()
            return kind, request, *served.post(connection, *request)

    def fuzz(n):
        for i in range(n):
            kind, sent, status, sentence = answered(i)
            counts.setdefault(kind, {}).setdefault(status, 0)
            counts[kind][status] += 1
            if status >= 500 or status >= 400 and len(sentence) < 15:
                wrong.append((kind, status, sentence, sent))
            if i % 100 == 0:
                status, answer = served.post(connection, images)
                assert status == 200
                np.testing.assert_allclose(load(answer), load(expected), rtol=1e-5, atol=1e-5)

    fuzz(REQUESTS // 4)  # until caches and heaps have their size
    start = time.monotonic()
    with served.same() as memory:
        fuzz(REQUESTS)
    seconds = time.monotonic() - start
    grown = f'memory {memory[0]:.0f} -> {memory[1]:.0f} MB'
    lines = [f'bad requests: {REQUESTS * 5 // 4:,} (seed {seed}) in {seconds:.0f} s; {grown}; answers by kind:']
    for kind, by in sorted(counts.items()):
        lines.append(f'    {kind:22} ' + '  '.join(f'{s or "closed"}: {n}' for s, n in sorted(by.items())))
    report('\n'.join(lines))
    assert not wrong, (len(wrong), {case[:3]: case[3] for case in wrong})
    assert docker(f'exec {served.name} sh -c', f'ls -d {CANARY} 2>/dev/null || true') == ''
