"""What serves: SageMaker's hosting contract on port 8080, for a user's script with four hooks.

GET /ping answers 200 once a worker has loaded the model, GET /metrics is for Prometheus. POST /invocations
runs output_fn(predict_fn(input_fn(body, content_type), model), accept), see hooks.py.

Started by `serve` through gunicorn.conf.py, one create_app() in each worker.
"""

import asyncio
import collections
import concurrent.futures
import logging
import re
import time

import chainer
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound

from sagemaker_chainer_container import metrics
from sagemaker_chainer_container.body import MAX_PAYLOAD, Body
from sagemaker_chainer_container.budget import Budget
from sagemaker_chainer_container.hooks import Predictor, text

# What a worker takes in at a time; to more it answers 503.
MAX_REQUESTS, MAX_BYTES = 256, 16 * MAX_PAYLOAD
BATCH, BATCH_BYTES = 32, 2**20  # the most that is predicted together, but for a single request
QUICK = 0.02  # seconds of a prediction for which /ping and other requests may wait
METHODS = {'/ping': ('GET', 'HEAD'), '/invocations': ('POST',)}
if metrics.METRICS:
    METHODS['/metrics'] = ('GET',)
NAMED = re.compile(r'/endpoints/[^/]+(?=/invocations$)')  # before the path, as AWS's clients post

logger = logging.getLogger('gunicorn.error')


class App:
    """An ASGI application that takes in requests side by side, and predicts together those that wait.

    predict(requests) returns (status, body, headers) for each, as hooks.Predictor does.
    """

    def __init__(self, predict):
        self.predict = predict
        # What model_fn set in chainer.config counts in this thread only; it must in the other one, too.
        config = dict(chainer.config._local.__dict__)
        self.thread = concurrent.futures.ThreadPoolExecutor(
            1, initializer=lambda: chainer.config._local.__dict__.update(config)
        )
        self.thread.submit(bool).result()  # what starts now cannot fail to start later
        self.waiting = collections.deque()  # (content, headers, future)
        self.busy = False  # one batch at a time
        self.quick_size = 0  # batches of up to so many bytes have been quick
        self.requests, self.bytes = Budget(MAX_REQUESTS), Budget(MAX_BYTES)

    async def __call__(self, scope, receive, send):
        start, body, path = time.perf_counter(), Body(receive), NAMED.sub('', scope['path'])
        try:
            status, content, headers = await self.respond(scope, path, body)
        except HTTPException as e:
            status, content, headers = text(e.code, e.description)
        headers = [
            (name.lower().encode('latin-1'), value.encode('latin-1'))
            for name, value in headers
            if name.lower() != 'content-length'
        ]
        headers.append((b'content-length', str(len(content)).encode()))
        if not body.ended:  # or what is left of it would have to be read
            headers.append((b'connection', b'close'))
        known = path if path in METHODS else 'other'
        metrics.answered(scope['method'], known, status, len(content), time.perf_counter() - start)
        await send({'type': 'http.response.start', 'status': status, 'headers': headers})
        await send({'type': 'http.response.body', 'body': content})

    async def respond(self, scope, path, body):
        """Return (status, content, headers), or raise HTTPException."""
        headers = {name.decode('latin-1'): value.decode('latin-1') for name, value in scope['headers']}
        with self.bytes.share() as share:
            content = await body.read(int(headers.get('content-length', 0)), share)
            methods = METHODS.get(path)
            if methods is None:
                raise NotFound('There are GET /ping and POST /invocations.')
            if scope['method'] not in methods:
                raise MethodNotAllowed(methods)
            if path == '/ping':
                return 200, b'', []
            if path == '/metrics':
                return metrics.exposition()
            with self.requests.share() as place:
                place.take(1)
                future = asyncio.get_running_loop().create_future()
                self.waiting.append((content, headers, future))
                metrics.in_flight(MAX_REQUESTS - self.requests.left)
                self.predict_next()
                return await future

    def predict_next(self):
        if self.waiting and not self.busy:
            self.busy = True
            asyncio.get_running_loop().call_soon(self.next_batch)  # after all that are here have been read

    def next_batch(self):
        """Predict what waits, here if as much has been quick, else in the thread."""
        batch, size = [], 0
        while self.waiting and (
            not batch
            or self.predict.batches
            and len(batch) < BATCH
            and size + len(self.waiting[0][0]) <= BATCH_BYTES
        ):
            batch.append(self.waiting.popleft())
            size += len(batch[-1][0])
        requests = [(content, headers) for content, headers, _ in batch]
        # Of a picture the bytes do not tell the time.
        pictures = any(headers.get('content-type', '').startswith('image/') for _, headers in requests)
        if size <= self.quick_size and not pictures:  # else the way to the thread and back would take as long
            self.answer(batch, size, *self.timed(requests))
        else:
            running = asyncio.get_running_loop().run_in_executor(self.thread, self.timed, requests)
            running.add_done_callback(lambda done: self.answer(batch, size, *done.result()))

    def timed(self, requests):
        """Return the responses, and whether they came quickly."""
        start = time.perf_counter()
        try:
            responses = self.predict(requests)
        except (KeyboardInterrupt, SystemExit):  # the script wants the worker to end
            raise
        except BaseException:  # nobody may wait for ever
            logger.exception('A batch failed')
            responses = [text(500, 'The server failed on this request.')] * len(requests)
        return responses, time.perf_counter() - start <= QUICK

    def answer(self, batch, size, responses, quick):
        for (_, _, future), response in zip(batch, responses):
            if not future.done():  # cancelled
                future.set_result(response)
        self.quick_size = max(self.quick_size, size) if quick else min(self.quick_size, size - 1)
        self.busy = False
        metrics.predicted(len(batch), len(self.waiting))
        self.predict_next()


def create_app():
    """Load the user's script and model, and return the ASGI application."""
    return App(Predictor())
