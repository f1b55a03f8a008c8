"""What serves: SageMaker's hosting contract on port 8080, for a user's script with four hooks.

GET /ping answers 200 once a worker has loaded the model. POST /invocations runs
output_fn(predict_fn(input_fn(body, content_type), model), accept), see hooks.py.

Started by `serve` through gunicorn.conf.py, one create_app() in each worker.
"""

import asyncio
import concurrent.futures
import logging
import re
import threading
import time

import chainer
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound

from sagemaker_chainer_container.body import MAX_PAYLOAD, Body
from sagemaker_chainer_container.budget import Budget
from sagemaker_chainer_container.hooks import Predictor

# What a worker takes in at a time; to more it answers 503.
MAX_REQUESTS, MAX_BYTES = 256, 16 * MAX_PAYLOAD
QUICK = 0.02  # seconds of a prediction for which /ping and other requests may wait
METHODS = {'/ping': ('GET', 'HEAD'), '/invocations': ('POST',)}
NAMED = re.compile(r'/endpoints/[^/]+(?=/invocations$)')  # before the path, as AWS's clients post

logger = logging.getLogger('gunicorn.error')


class App:
    """An ASGI application that takes in requests side by side and runs predictions one at a time.

    predict(body, headers) returns (status, body, headers), as hooks.Predictor does.
    """

    def __init__(self, predict):
        self.predict = predict
        # What model_fn set in chainer.config counts in this thread only; it must in the other one, too.
        config = dict(chainer.config._local.__dict__)
        self.thread = concurrent.futures.ThreadPoolExecutor(
            1, initializer=lambda: chainer.config._local.__dict__.update(config)
        )
        self.turn = threading.Lock()  # Chainer models need not be thread-safe
        self.quick_size = 0  # bodies of up to so many bytes have been quick
        self.requests, self.bytes = Budget(MAX_REQUESTS), Budget(MAX_BYTES)

    async def __call__(self, scope, receive, send):
        body = Body(receive)
        try:
            status, content, headers = await self.respond(scope, body)
        except HTTPException as e:
            status, content, headers = text(e.code, e.description)
        except Exception:
            logger.exception('%s failed', scope['path'])
            status, content, headers = text(
                500, "The script failed on this request; the container's log has the traceback."
            )
        headers = [
            (name.lower().encode('latin-1'), value.encode('latin-1'))
            for name, value in headers
            if name.lower() != 'content-length'
        ]
        headers.append((b'content-length', str(len(content)).encode()))
        if not body.ended:  # or what is left of it would have to be read
            headers.append((b'connection', b'close'))
        await send({'type': 'http.response.start', 'status': status, 'headers': headers})
        await send({'type': 'http.response.body', 'body': content})

    async def respond(self, scope, body):
        """Return (status, content, headers), or raise HTTPException."""
        headers = {name.decode('latin-1'): value.decode('latin-1') for name, value in scope['headers']}
        with self.bytes.share() as share:
            content = await body.read(int(headers.get('content-length', 0)), share)
            path = NAMED.sub('', scope['path'])
            methods = METHODS.get(path)
            if methods is None:
                raise NotFound('There are GET /ping and POST /invocations.')
            if scope['method'] not in methods:
                raise MethodNotAllowed(methods)
            if path == '/ping':
                return 200, b'', []
            with self.requests.share() as place:
                place.take(1)
                return await self.predict_in_turn(content, headers)

    async def predict_in_turn(self, *request):
        """Call predict, here if it has been quick for bodies of this size, else in the thread."""
        size = len(request[0])
        if size <= self.quick_size and self.turn.acquire(blocking=False):
            try:  # the way to the thread and back would take as long as the prediction
                response, quick = self.timed(*request)
            finally:
                self.turn.release()
        else:
            loop = asyncio.get_running_loop()
            response, quick = await loop.run_in_executor(self.thread, self.wait_and_predict, *request)
        self.quick_size = max(self.quick_size, size) if quick else min(self.quick_size, size - 1)
        return response

    def wait_and_predict(self, *request):
        with self.turn:
            return self.timed(*request)

    def timed(self, *request):
        """Return the response, and whether it came quickly."""
        start = time.perf_counter()
        return self.predict(*request), time.perf_counter() - start <= QUICK


def text(status, sentence):
    """Return a response of one sentence."""
    return status, (sentence + '\n').encode(), [('Content-Type', 'text/plain; charset=utf-8')]


def create_app():
    """Load the user's script and model, and return the ASGI application."""
    return App(Predictor())
