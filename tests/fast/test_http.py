"""The server handles broken HTTP, endless requests and offers to upgrade."""

import contextlib
import json

import pytest
from support import http


@pytest.fixture
def ask(connect, url):
    """Return a function that sends bytes, then pieces until the server closes; it returns the answer."""

    def ask(sent, pieces=()):
        answer = b''
        with connect(url) as client:
            with contextlib.suppress(ConnectionError):  # closed; what came before can still be read
                client.sendall(sent)
                for piece in pieces:
                    client.sendall(piece)
            with contextlib.suppress(ConnectionError):
                while received := client.recv(65536):
                    answer += received
        return answer

    return ask


POST = b'POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n'


@pytest.mark.parametrize(
    'sent',
    [
        b'\0\xff\r\n\r\n',
        b'GET /ping HTTP/9.9\r\n\r\n',
        POST + b'no colon\r\n\r\n',
        POST + b'Content-Length: -5\r\n\r\n',
        POST + b'Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n',
        POST + b'Transfer-Encoding: gzip\r\n\r\n',
        POST + b'Transfer-Encoding: chunked\r\n\r\nzz\r\n',
    ],
)
def test_broken_http_gets_400_with_a_sentence(ask, sent):
    head, _, sentence = ask(sent).partition(b'\r\n\r\n')
    assert head.startswith(b'HTTP/1.1 400 ') and sentence.startswith(b'Invalid HTTP request')


@pytest.mark.parametrize(
    'sent, piece, most',
    [
        (b'GET /ping HTTP/1.1\r\nX: ', b'x' * 65536, 100),
        (POST + b'Transfer-Encoding: chunked\r\n\r\n1\r\n1\r\n0\r\n', b'X: x\r\n' * 10000, 100),
        (POST + b'Content-Length: 99999999999\r\n\r\n', b'1' * 65536, 1500),  # 98 MB
        (POST + b'Transfer-Encoding: chunked\r\n\r\n', b'10000\r\n' + b'1' * 65536 + b'\r\n', 1500),
    ],
    ids=['header', 'trailers', 'body', 'chunks'],
)
def test_what_does_not_end_is_cut_off(ask, url, sent, piece, most):
    pieces = iter([piece] * 6000)
    answer = ask(sent, pieces)
    assert not answer or answer.startswith((b'HTTP/1.1 400 ', b'HTTP/1.1 413 '))  # or it is lost in a reset
    assert 6000 - len(list(pieces)) < most
    assert http.request('GET', url + '/ping').status == 200


def test_a_request_that_offers_http_2_or_waits_for_100_is_answered(ask):
    body = json.dumps([0.0] * 784).encode()
    for headers, before in (
        (b'Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n', b''),
        (b'Expect: 100-continue\r\n', b'HTTP/1.1 100 Continue\r\n\r\n'),
    ):
        answer = ask(POST + headers + b'Content-Length: %d\r\n\r\n' % len(body) + body)
        assert answer.startswith(before + b'HTTP/1.1 200 OK\r\n') and answer.endswith(b']')


def test_ping_says_no_more_than_it_must(url):
    for method in 'GET', 'HEAD':
        response = http.request(method, url + '/ping')
        assert response.status == 200 and not response.data
        assert {name.lower() for name in response.headers} == {'date', 'content-length'}


@pytest.mark.parametrize('origin', ['http://evil.example', 'null', 'http://127.0.0.1:8080'])
def test_a_page_in_a_browser_gets_nothing_predicted(url, origin):
    """A browser sends Origin with every POST, also of a page that has rebound its name to this address."""
    headers = {'Origin': origin, 'Content-Type': 'text/plain'}
    for method, path in ('POST', '/invocations'), ('GET', '/ping'), ('OPTIONS', '/invocations'), ('GET', '/metrics'):
        response = http.request(method, url + path, body=b'0' * 784, headers=headers)
        assert response.status == 403 and b'without Origin' in response.data
        assert not [name for name in response.headers if name.startswith('access-control')]
