"""This module serves the user's script on port 8080 by SageMaker's hosting contract.

GET /ping answers 200 once a worker has loaded the model. POST /invocations answers with
output_fn(predict_fn(input_fn(body, content_type), model), accept), see hooks.py. GET /metrics is for
Prometheus. `serve` starts gunicorn with gunicorn.conf.py; each worker calls create_app().
"""

import asyncio
import collections
import concurrent.futures
import faulthandler
import os
import re
import time
from typing import Any, NamedTuple

import chainer
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound, ServiceUnavailable

from sagemaker_chainer_container import metrics
from sagemaker_chainer_container.body import MAX_PAYLOAD, Body
from sagemaker_chainer_container.budget import Budget, Reservation
from sagemaker_chainer_container.hooks import Predictor, Request, Response

# The most that a worker holds at a time; beyond it the worker answers 503.
MAX_REQUESTS, MAX_BYTES = 256, 16 * MAX_PAYLOAD
BATCH, BATCH_BYTES = 32, 2**20  # the largest batch; one request with more bytes is predicted alone
TIMEOUT = int(os.environ.get('SAGEMAKER_MODEL_SERVER_TIMEOUT', 60))  # as in gunicorn.conf.py
QUICK = 0.02  # seconds: a shorter prediction may keep /ping and other requests waiting
METHODS = {'/ping': ('GET', 'HEAD'), '/invocations': ('POST',)}
if metrics.METRICS:
    METHODS['/metrics'] = ('GET',)
NAMED = re.compile(r'/endpoints/[^/]+(?=/invocations$)')  # AWS's clients post to this prefix
GONE = Response(499, b'', [])  # nobody gets it; as nginx counts it


class Waiting(NamedTuple):
    """A request that waits for a prediction, the future of its Response, and uvicorn's state of its connection."""

    request: Request
    future: asyncio.Future
    cycle: Any
    since: float


class App:
    """An ASGI application that reads requests concurrently and predicts waiting ones as a batch.

    predict: a hooks.Predictor, which makes a list of Response from one of Request.
    """

    def __init__(self, predict):
        self.predict = predict
        # chainer.config is per thread: give the predicting thread the settings that model_fn made here.
        settings, config = chainer.config._local, dict(vars(chainer.config._local))
        self.thread = concurrent.futures.ThreadPoolExecutor(1, initializer=lambda: vars(settings).update(config))
        self.thread.submit(bool).result()  # start the thread now: later it might fail to start
        self.waiting = collections.deque()  # of Waiting
        self.busy = False  # whether a batch is being predicted: only one is, at a time
        self.quick_size = 0  # bytes: batches of up to this size have been quick
        self.crowded_until = 0  # seconds: until then the newest request comes first
        self.requests, self.bytes = Budget(MAX_REQUESTS), Budget(MAX_BYTES)

    async def __call__(self, scope, receive, send):
        start, body, path = time.perf_counter(), Body(receive), NAMED.sub('', scope['path'])
        try:
            status, content, headers = await self.respond(scope, path, body)
        except HTTPException as e:
            status, content, headers = Response.text(e.code, e.description, e.get_headers()[1:])
        headers = [*headers, (b'content-length', str(len(content)).encode())]
        if not body.ended:  # a kept connection would have to read the rest of the body
            headers.append((b'connection', b'close'))
        known = path if path in METHODS else 'other'
        metrics.answered(scope['method'], known, status, len(content), time.perf_counter() - start)
        await send({'type': 'http.response.start', 'status': status, 'headers': headers})
        await send({'type': 'http.response.body', 'body': content})

    async def respond(self, scope, path, body):
        """Return the Response to a request. Raises HTTPException for 4xx and 503."""
        headers = {name.decode('latin-1'): value.decode('latin-1') for name, value in scope['headers']}
        with Reservation(self.bytes) as reservation:
            content = await body.read(int(headers.get('content-length', 0)), reservation)
            if path not in METHODS:
                raise NotFound('There are GET /ping and POST /invocations.')
            if scope['method'] not in METHODS[path]:
                raise MethodNotAllowed(METHODS[path])
            if path == '/ping':
                if 0 < 0.75 * TIMEOUT < self.stuck():
                    raise ServiceUnavailable('A prediction hangs: the worker will be replaced if it does not end.')
                return Response(200, b'', [])
            if path == '/metrics':
                return Response(200, metrics.exposition(), [(b'content-type', metrics.CONTENT_TYPE.encode())])
            with Reservation(self.requests) as place:
                place.take(1)
                future, cycle = asyncio.get_running_loop().create_future(), body.receive.__self__
                cycle.flow.resume_reading()  # uvicorn pauses it at a large body, and would not see the client go
                self.waiting.append(Waiting(Request(content, headers), future, cycle, time.monotonic()))
                metrics.in_flight(MAX_REQUESTS - self.requests.left)
                self.predict_next()
                return await future

    def stuck(self):
        """Return for how many seconds the running call of the script has run, 0 if none runs."""
        return time.monotonic() - self.predict.began if self.busy else 0

    def predict_next(self):
        if self.waiting and not self.busy:
            self.busy, self.predict.began = True, time.monotonic()
            asyncio.get_running_loop().call_soon(self.next_batch)  # after requests that have arrived are read

    def drop_abandoned(self):
        """Drop requests whose clients have gone; while clients that waited go, let the newest requests come first.

        The oldest would be those that the next clients are about to give up.
        """
        for waiting in [waiting for waiting in self.waiting if waiting.cycle.disconnected]:
            self.waiting.remove(waiting)
            waiting.future.set_result(GONE)
            if time.monotonic() - waiting.since > 0.5:
                self.crowded_until = time.monotonic() + 5

    def next_batch(self):
        """Predict the next batch: in this thread if one of its size was quick, otherwise in the other."""
        self.drop_abandoned()
        batch, size, first = [], 0, -1 if time.monotonic() < self.crowded_until else 0
        while self.waiting and (not batch or self.predict.batches and len(batch) < BATCH):
            size += len(self.waiting[first].request.body)
            if batch and size > BATCH_BYTES:
                break
            batch.append(self.waiting[first])
            del self.waiting[first]
        requests = [waiting.request for waiting in batch]
        # A picture's size in bytes says little about how long it takes to decode.
        pictures = any(r.headers.get('content-type', '').startswith('image/') for r in requests)
        if size <= self.quick_size and not pictures:  # handing it to the thread would take as long
            self.answer(batch, size, *self.timed(requests))
        else:
            running = asyncio.get_running_loop().run_in_executor(self.thread, self.timed, requests)
            running.add_done_callback(lambda done: self.answer(batch, size, *done.result()))

    def timed(self, requests):
        """Return the responses, and whether they took at most QUICK seconds."""
        start = time.perf_counter()
        return self.predict(requests), time.perf_counter() - start <= QUICK

    def answer(self, batch, size, responses, quick):
        for waiting, response in zip(batch, responses):
            if not waiting.future.done():  # it was cancelled
                waiting.future.set_result(response)
        self.quick_size = max(self.quick_size, size) if quick else min(self.quick_size, size - 1)
        self.busy = False
        metrics.predicted(len(batch), len(self.waiting))
        self.predict_next()


def create_app():
    """Load the user's script and model; return the ASGI application."""
    faulthandler.enable()  # when gunicorn ends a worker that hangs, the log shows where
    try:
        return App(Predictor())
    except (KeyboardInterrupt, SystemExit) as e:  # would start the worker anew, for ever
        raise RuntimeError('The script has exited instead of loading the model.') from e
