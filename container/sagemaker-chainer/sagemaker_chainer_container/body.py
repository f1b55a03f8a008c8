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


class Reservation(contextlib.AbstractContextManager):
    """Counts the bytes of a request's body among all that may be held; the end of the `with` block gives them back."""

    left, taken = 16 * MAX_PAYLOAD, 0

    def __exit__(self, *_):
        self.take(-self.taken)

    def take(self, amount):
        """Reserve this much more. Raises ServiceUnavailable (503) if less is left."""
        if amount > Reservation.left:
            raise ServiceUnavailable(FULL)
        Reservation.left -= amount
        self.taken += amount


class Body:
    """The body of one request. receive: ASGI's callable. ended: whether the client has sent all of it."""

    def __init__(self, receive):
        self.receive, self.ended = receive, False

    async def read(self, announced, reservation):
        """Return the body, bytes. Raises HTTPException: 413 (too large), 408 (stalled) or 503 (no memory).

        announced: Content-Length in bytes, 0 if absent. reservation: the Reservation that counts it.
        """
        chunks, size, refusal = [], 0, None
        # Most clients look for an answer only after sending all, so read up to twice the limit before a 413.
        while not self.ended and size <= 2 * MAX_PAYLOAD:
            chunk = await self.next_chunk()
            size += len(chunk)
            if max(size, announced) > MAX_PAYLOAD:
                refusal = RequestEntityTooLarge(f'The body must not be larger than {MAX_PAYLOAD_IN_MB} MB.')
            if refusal is None:
                try:
                    reservation.take(len(chunk))
                    chunks.append(chunk)
                except ServiceUnavailable as e:
                    refusal = e
            if refusal is not None:
                chunks.clear()
                reservation.take(-reservation.taken)
        if refusal is not None:
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
