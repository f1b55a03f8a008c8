"""The body of a request, as it comes in: neither too long, nor too much for the memory, nor for ever."""

import asyncio
import os

from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge, RequestTimeout, ServiceUnavailable

# SageMaker passes on bodies of up to 25 MB; batch transform sets a limit of its own.
MAX_PAYLOAD_IN_MB = int(os.environ.get('SAGEMAKER_MAX_PAYLOAD_IN_MB', 25))
MAX_PAYLOAD = MAX_PAYLOAD_IN_MB * 2**20
STALLED = 60  # seconds for which no byte has come


class Body:
    """receive: ASGI's. ended: whether the client has sent all."""

    def __init__(self, receive):
        self.receive, self.ended = receive, False

    async def read(self, announced, share):
        """Return the bytes, or raise HTTPException: 413, 408, 503.

        announced: Content-Length, 0 where there is none. share: of the budget, in bytes.
        """
        chunks, size, refusal = [], 0, None
        # Most clients look for an answer only when all is sent, so take in twice as much before one.
        while not self.ended and size <= 2 * MAX_PAYLOAD:
            chunk = await self.next_chunk()
            size += len(chunk)
            if max(size, announced) > MAX_PAYLOAD:
                refusal = RequestEntityTooLarge(f'The body must not be larger than {MAX_PAYLOAD_IN_MB} MB.')
            if refusal is None:
                try:
                    share.take(len(chunk))
                    chunks.append(chunk)
                except ServiceUnavailable as e:
                    refusal = e
            if refusal is not None:
                chunks.clear()
                share.give_back()
        if refusal is not None:
            raise refusal
        return b''.join(chunks)

    async def next_chunk(self):
        try:
            async with asyncio.timeout(STALLED):
                message = await self.receive()
        except TimeoutError:
            raise RequestTimeout(f'The body has not come on for {STALLED} seconds.') from None
        if message['type'] == 'http.disconnect':
            raise ClientDisconnected
        self.ended = not message.get('more_body')
        return message.get('body', b'')
