"""This module configures uvicorn's worker for gunicorn, and changes its HTTP parsing in two points."""

import signal

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn_worker import UvicornWorker

MAX_HEAD = 65536  # bytes of a request line and headers


class Protocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, which also limits the size of heads and ignores offers to upgrade.

    httptools has no limit, and copies a growing header again for each packet. It drops the body of a
    request that offers HTTP/2, as every request of Java's HttpClient does.
    """

    pending = 0  # bytes received since the last complete head or piece of a body

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
                line = b' '.join(
                    [self.parser.get_method(), self.url, b'HTTP/' + self.parser.get_http_version().encode()]
                )
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
        'timeout_notify': 1,  # seconds between heartbeats; the default is half of gunicorn's timeout
    }

    def handle_exit(self, sig, frame):
        """Stop at SIGQUIT, which gunicorn sends at Ctrl-C and uvicorn's worker ignores."""
        signal.raise_signal(signal.SIGTERM)
