"""This module configures uvicorn's worker for gunicorn, and changes its HTTP parsing in two points."""

import re
import resource
import signal
import time

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn_worker import UvicornWorker

MAX_HEAD = 65536  # bytes of a request line and headers
UPGRADE = re.compile(rb'\r\nupgrade:', re.IGNORECASE)
# Beyond so many connections that which has waited longest for its client is closed.
MAX_CONNECTIONS = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 64, 4096)


class Protocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, which also limits the size of heads and ignores offers to upgrade.

    httptools has no limit, and copies a growing header again for each packet. It drops the body of a
    request that offers HTTP/2, as every request of Java's HttpClient does.
    """

    all = ()  # connections
    since = 0  # since when it has waited for its client; 0: a request is being answered
    in_head = True
    pending = 0  # bytes received since the last complete head or piece of a body

    def connection_made(self, transport):
        super().connection_made(transport)
        self.since, Protocol.all = time.monotonic(), self.connections
        if len(self.connections) > MAX_CONNECTIONS:
            min([c for c in self.connections if c.since], key=lambda c: c.since).abort()

    def abort(self):
        self.since = 0
        self.transport.abort()

    def on_response_complete(self):
        super().on_response_complete()
        self.since = self.cycle.response_complete and time.monotonic()  # else another request came behind it

    def data_received(self, data):
        self.pending += len(data)
        if self.in_head:
            head, end, body = data.partition(b'\r\n\r\n')
            if UPGRADE.search(head):
                data = UPGRADE.sub(b'\r\nnot-upgraded:', head) + end + body
        super().data_received(data)
        if self.pending > MAX_HEAD and not self.transport.is_closing():
            self.send_400_response('The headers are too long.')

    def on_headers_complete(self):
        super().on_headers_complete()
        self.in_head, self.pending = False, 0

    def on_body(self, body):
        super().on_body(body)
        self.pending = 0

    def on_message_complete(self):
        super().on_message_complete()
        self.in_head, self.since = True, 0


class Worker(UvicornWorker):
    """uvicorn's worker, with this server's settings."""

    CONFIG_KWARGS = {
        'http': Protocol,
        'loop': 'uvloop',
        'ws': 'none',
        'lifespan': 'off',
        'proxy_headers': False,
        'server_header': False,
        'log_level': 'error',  # at a lower level each broken request writes a line
        'timeout_notify': 0.5,  # look for what hangs each second; the default is half of gunicorn's timeout
    }

    async def callback_notify(self):
        """Send a heartbeat unless a prediction hangs; close connections without a request, or with an unread answer."""
        if self.wsgi.stuck() < 2:
            self.notify()
        begun = time.monotonic() - self.cfg.keepalive - (self.cfg.timeout or 60)
        for connection in [c for c in Protocol.all if 0 < c.since < begun]:
            connection.abort()

    def handle_exit(self, sig, frame):
        """Stop at SIGQUIT, which gunicorn sends at Ctrl-C and uvicorn's worker ignores."""
        signal.raise_signal(signal.SIGTERM)
