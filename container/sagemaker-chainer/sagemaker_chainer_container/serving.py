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

import chainer
from werkzeug.exceptions import Forbidden, HTTPException, MethodNotAllowed, NotFound, ServiceUnavailable

from sagemaker_chainer_container import metrics
from sagemaker_chainer_container.body import FULL, Body
from sagemaker_chainer_container.hooks import Predictor, Response

MAX_REQUESTS = 256  # that wait at a time; a worker answers 503 to more
BATCH, BATCH_BYTES = 32, 2**20  # the largest batch; one request with more bytes is predicted alone
TIMEOUT = int(os.environ.get('SAGEMAKER_MODEL_SERVER_TIMEOUT', 60))  # as in gunicorn.conf.py
QUICK = 0.02  # seconds: a shorter prediction may keep /ping and other requests waiting
METHODS = {'/ping': ('GET', 'HEAD'), '/invocations': ('POST',)}
if metrics.METRICS:
    METHODS['/metrics'] = ('GET',)
NAMED = re.compile(r'/endpoints/[^/]+(?=/invocations$)')  # AWS's clients post to this prefix
GONE = Response(499, b'', [])  # nobody gets it; as nginx counts it

# A POST /invocations: headers as {lower-case name: value}, the future of its Response, when it came, and
# uvicorn's state of it, which knows whether the client has gone.
Request = collections.namedtuple('Request', 'body headers future since cycle')


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
        self.waiting = collections.deque()  # of Request
        self.batch = None  # the list of Request that is being predicted: only one is, at a time
        self.quick_size = -1  # bytes: batches of up to this size have been quick
        self.newest_first_until = 0  # seconds, by time.monotonic()

    async def __call__(self, scope, receive, send):
        start, path = time.perf_counter(), NAMED.sub('', scope['path'])
        with Body(receive) as body:
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
        if 'origin' in headers:  # browsers send it with every POST, SageMaker never
            raise Forbidden('Pages in browsers get no answer here: send the request without Origin.')
        content = await body.read(int(headers.get('content-length', 0)))
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
        if len(self.waiting) >= MAX_REQUESTS:
            raise ServiceUnavailable(FULL)
        future, cycle = asyncio.get_running_loop().create_future(), body.receive.__self__
        cycle.flow.resume_reading()  # uvicorn pauses it at a large body, and would not see the client go
        self.waiting.append(Request(content, headers, future, time.monotonic(), cycle))
        metrics.in_flight(len(self.waiting) + len(self.batch or ()))
        self.predict_next()
        return await future

    def stuck(self):
        """Return for how many seconds the running call of the script has run, 0 if none runs."""
        return time.monotonic() - self.predict.began if self.batch else 0

    def predict_next(self):
        if self.waiting and self.batch is None:
            self.batch = []
            asyncio.get_running_loop().call_soon(self.next_batch)  # after requests that have arrived are read

    def drop_abandoned(self):
        """Drop requests whose clients have gone; if these had waited, predict the newest first: others will go."""
        for request in [request for request in self.waiting if request.cycle.disconnected]:
            self.waiting.remove(request)
            if not request.future.done():  # it was cancelled
                request.future.set_result(GONE)
            if time.monotonic() - request.since > 0.5:
                self.newest_first_until = time.monotonic() + 5

    def next_batch(self):
        """Predict the next batch: in this thread if one of its size was quick, otherwise in the other."""
        self.drop_abandoned()
        if not self.waiting:
            self.batch = None
            return metrics.in_flight(0)
        size, first = 0, -1 if time.monotonic() < self.newest_first_until else 0
        while self.waiting and (not self.batch or self.predict.batches and len(self.batch) < BATCH):
            if self.batch and size + len(self.waiting[first].body) > BATCH_BYTES:
                break
            self.batch.append(self.waiting[first])
            del self.waiting[first]
            size += len(self.batch[-1].body)
        self.predict.began = time.monotonic()
        # A picture's size in bytes says little about how long it takes to decode.
        pictures = any(r.headers.get('content-type', '').startswith('image/') for r in self.batch)
        if size <= self.quick_size and not pictures:  # handing it to the thread would take as long
            self.answer(size, *self.timed(self.batch))
        else:
            running = asyncio.get_running_loop().run_in_executor(self.thread, self.timed, self.batch)
            running.add_done_callback(lambda done: self.answer(size, *done.result()))

    def timed(self, requests):
        """Return the responses, and whether they took at most QUICK seconds."""
        start = time.perf_counter()
        return self.predict(requests), time.perf_counter() - start <= QUICK

    def answer(self, size, responses, quick):
        for request, response in zip(self.batch, responses):
            if not request.future.done():  # it was cancelled
                request.future.set_result(response)
        self.quick_size = max(self.quick_size, size) if quick else min(self.quick_size, size - 1)
        metrics.observe(len(self.batch))
        metrics.in_flight(len(self.waiting))
        self.batch = None
        self.predict_next()


def create_app():
    """Load the user's script and model; return the ASGI application."""
    faulthandler.enable()  # when gunicorn ends a worker that hangs, the log shows where
    try:
        return App(Predictor())
    except (KeyboardInterrupt, SystemExit) as e:  # would start the worker anew, for ever
        raise RuntimeError('The script has exited instead of loading the model.') from e
