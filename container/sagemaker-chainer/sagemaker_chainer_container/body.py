"""This module reads request bodies, within limits on size, memory and time."""

import asyncio
import contextlib
import os

from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge, RequestTimeout, ServiceUnavailable

# SageMaker forwards bodies of up to 25 MB; batch transform sets its own limit.
MAX_PAYLOAD_IN_MB = int(os.environ.get('SAGEMAKER_MAX_PAYLOAD_IN_MB', 25))
MAX_PAYLOAD = MAX_PAYLOAD_IN_MB * 2**20
STALLED = 60  # seconds without a byte after which the answer is 408
FULL = 'The endpoint has more requests than it can take: try again later.'


class Body(contextlib.AbstractContextManager):
    """The body of one request, whose bytes count among those that may be held until the `with` block ends.

    receive: ASGI's callable. ended: whether the client has sent all of it.
    """

    left = 16 * MAX_PAYLOAD  # bytes that requests may still hold, all together

    def __init__(self, receive):
        self.receive, self.ended, self.held = receive, False, 0

    def __exit__(self, *_):
        self.hold(0)

    def hold(self, size):
        """Count this many bytes as held, instead of those before."""
        Body.left -= size - self.held
        self.held = size

    async def read(self, announced):
        """Return the body, bytes. Raises HTTPException: 413 (too large), 408 (stalled) or 503 (no memory).

        announced: Content-Length in bytes, 0 if absent.
        """
        chunks, size, refusal = [], 0, None
        # Most clients look for an answer only after sending all, so read up to twice the limit before a 413.
        while not self.ended and size <= 2 * MAX_PAYLOAD:
            chunks.append(await self.next_chunk())
            size += len(chunks[-1])
            if max(size, announced) > MAX_PAYLOAD:
                refusal = RequestEntityTooLarge(f'The body must not be larger than {MAX_PAYLOAD_IN_MB} MB.')
            elif size - self.held > Body.left:
                refusal = ServiceUnavailable(FULL)
            if refusal:
                chunks.clear()
            self.hold(0 if refusal else size)
        if refusal:
            raise refusal
        return b''.join(chunks)

    async def next_chunk(self):
        try:
            async with asyncio.timeout(STALLED):
                message = await self.receive()
        except TimeoutError:
            raise RequestTimeout(f'No byte of the body has arrived for {STALLED} seconds.') from None
        if message['type'] == 'http.disconnect':
            raise ClientDisconnected
        self.ended = not message.get('more_body')
        return message.get('body', b'')
