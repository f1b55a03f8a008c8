"""The server handles broken HTTP, endless requests and offers to upgrade."""

import contextlib
import json
import socket
import time

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


OFFER = b'Connection: Upgrade, HTTP2-Settings\r\nuPgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n'
INNER = b'GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n'  # a body that must not be executed


def offering(body, chunked=False, close=b''):
    length = b'Transfer-Encoding: chunked\r\n' if chunked else b'Content-Length: %d\r\n' % len(body)
    head = POST.replace(b'Connection: close\r\n', close)
    return head + OFFER + length + b'\r\n' + (b'%x\r\n%s\r\n0\r\n\r\n' % (len(body), body) if chunked else body)


def statuses(answer):
    """Return the statuses of the answers, each of a known length."""
    found = []
    while answer:
        head, _, rest = answer.partition(b'\r\n\r\n')
        found.append(int(head.split()[1]))
        length = [line.split(b':')[1] for line in head.split(b'\r\n') if line.lower().startswith(b'content-length:')]
        answer = rest[int(length[0]) :]
    return found


@pytest.mark.slow
@pytest.mark.parametrize('chunked', [False, True])
def test_a_body_after_an_offer_to_upgrade_is_never_a_request(connect, url, chunked):
    """The answers do not depend on how the bytes arrive: whole, cut at any byte, or after another request."""
    ping, good = b'GET /ping HTTP/1.1\r\nHost: x\r\n\r\n', json.dumps([0] * 784).encode()
    end = b'GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n'
    sent = ping + offering(INNER, chunked) + offering(good, chunked) + ping + end
    cuts = [0, *range(len(ping), len(ping + offering(INNER, chunked)) + 100)]
    for group in (cuts[i : i + 60] for i in range(0, len(cuts), 60)):  # the server takes 256 requests at a time
        clients = [connect(url) for _ in group]
        for client, cut in zip(clients, group):
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.sendall(sent[:cut])
        time.sleep(0.2)  # the server reads the first pieces
        for client, cut in zip(clients, group):
            client.sendall(sent[cut:])
        for client, cut in zip(clients, group):
            with client, client.makefile('rb') as stream:
                assert statuses(stream.read()) == [200, 400, 200, 200, 404], cut


def test_an_offer_to_upgrade_byte_by_byte(ask):
    sent = offering(INNER, close=b'Connection: close\r\n')
    assert statuses(ask(b'', [sent[i : i + 1] for i in range(len(sent))])) == [400]


@pytest.mark.parametrize('target', [b'x:80', b'/ping', b'*'])
def test_connect_is_refused(ask, target):
    answer = ask(
        b'CONNECT %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n' % (target, len(INNER)) + INNER, [INNER]
    )
    assert statuses(answer) == [400]


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


def test_a_long_accept_is_refused_at_once(url):
    """To parse its spaces took seconds, and 16 MB of them a quarter of an hour."""
    start = time.monotonic()
    answer = http.request('POST', url + '/invocations', body=b'[[1]]', headers={'Accept': 'a' + ' ' * 50_000 + 'b'})
    assert answer.status == 406 and len(answer.data) < 200 and time.monotonic() - start < 1
