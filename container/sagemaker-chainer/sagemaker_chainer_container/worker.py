"""gunicorn's worker: uvicorn's, with its settings, and HTTP as uvicorn reads it but for two things."""

import re
import signal

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn_worker import UvicornWorker

MAX_HEAD = 65536  # bytes of a request line and headers
UPGRADE = re.compile(rb'\r\nupgrade:', re.IGNORECASE)


class Protocol(HttpToolsProtocol):
    """Heads have a limit, and offers to upgrade are passed over.

    httptools itself copies a header again for each piece of it, without end, and it leaves out the body of
    a request that offers HTTP/2, as all of Java's HttpClient do.
    """

    in_head = True
    pending = 0  # bytes that have not come to anything yet

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
        self.in_head = True


class Worker(UvicornWorker):
    CONFIG_KWARGS = {
        'http': Protocol,
        'loop': 'uvloop',
        'ws': 'none',
        'lifespan': 'off',
        'proxy_headers': False,
        'server_header': False,
        'log_level': 'error',  # else there is a line for each broken request
        'timeout_notify': 1,  # seconds between heartbeats; else half of gunicorn's timeout
    }

    def handle_exit(self, sig, frame):
        """Stop at SIGQUIT, which gunicorn makes of Ctrl-C; uvicorn's worker would go on."""
        signal.raise_signal(signal.SIGTERM)
