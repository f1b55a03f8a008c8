"""This module configures uvicorn's worker for gunicorn: parsing of HTTP, limits on connections, heartbeats."""

import resource
import signal
import time

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn_worker import UvicornWorker

MAX_HEAD = 65536  # bytes of a request line and headers
# With more connections than this, the one that has waited longest for its client is closed.
MAX_CONNECTIONS = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0] % 2**63 - 64, 4096)  # -1: no limit


class Protocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, which also limits the size of heads and ignores offers to upgrade.

    httptools has no limit, and copies a growing header again for each packet. It drops the body of a
    request that offers HTTP/2, as every request of Java's HttpClient does.
    """

    all = ()  # connections
    since = 0  # time.monotonic() since when the client must send or read; 0 while a request is answered
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
        self.since = self.cycle.response_complete and time.monotonic()  # otherwise another request came behind it

    def data_received(self, data):
        self.pending += len(data)
        self._unset_keepalive_if_required()
        try:
            self.parse(memoryview(data))
        except (HttpParserError, HttpParserUpgrade):  # the latter: CONNECT
            self.send_400_response('Invalid HTTP request received.')
        if self.pending > MAX_HEAD and not self.transport.is_closing():
            self.send_400_response('The headers are too long.')

    def parse(self, data):
        """Parse data; after a head that offers to upgrade, parse that head without the offer before the rest."""
        while data:
            try:
                return self.parser.feed_data(data)
            except HttpParserUpgrade as offer:
                version = self.parser.get_http_version().encode()
                line = b' '.join([self.parser.get_method(), self.url, b'HTTP/' + version])
                headers = [b': '.join(header) for header in self.headers if header[0] != b'upgrade']
                self.parser = HttpRequestParser(self)  # after `Connection: close` the old one ignores all
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as in uvicorn
                self.parser.feed_data(b'\r\n'.join([line, *headers, b'\r\n']))
                data = data[offer.args[0] :]

    def _should_upgrade(self):
        return True  # a head that offers it starts no request

    def on_headers_complete(self):
        super().on_headers_complete()
        self.pending = 0

    def on_body(self, body):
        super().on_body(body)
        self.pending = 0

    def on_message_complete(self):
        super().on_message_complete()
        self.since = 0


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
