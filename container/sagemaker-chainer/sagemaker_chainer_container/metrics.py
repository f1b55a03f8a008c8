"""This module counts requests: for Prometheus at GET /metrics, and as JSON lines in the access log.

All workers count in shared memory, which gunicorn's first process makes: no file can grow too large for a disk.
"""

import bisect
import contextlib
import http
import itertools
import json
import mmap
import os
import select
import time
import types

from prometheus_client import CONTENT_TYPE_LATEST as CONTENT_TYPE  # noqa: F401  # for serving.py
from prometheus_client import generate_latest
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily

METRICS = os.environ.get('SAGEMAKER_MODEL_SERVER_METRICS') != '0'
ACCESS_LOG = os.environ.get('SAGEMAKER_MODEL_SERVER_ACCESS_LOG') == '1'
LIMITS = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64]
# The labels of each histogram, and its place in a row; () is the size of batches.
PATHS = ['/ping', '/invocations', '/metrics', 'other']
LABELS = PATHS, ['other', '499', *(str(status.value) for status in http.HTTPStatus)]
PLACES = {labels: i for i, labels in enumerate([(), *itertools.product(*LABELS)])}
# A living worker has a row of its own; a dead one's is kept, and the next one adds to it.
ROWS, WIDTH = 256, len(LIMITS) + 3  # for each limit, and above, the number of values; their sum; requests in flight
COUNTS = memoryview(mmap.mmap(-1, 8 * ROWS * len(PLACES) * WIDTH)).cast('d', (ROWS, len(PLACES), WIDTH))
row = 0


def observe(value, place=0):
    COUNTS[row, place, bisect.bisect_left(LIMITS, value)] += 1
    COUNTS[row, place, WIDTH - 2] += value


def in_flight(requests):
    """Record how many requests wait for a prediction or are being predicted."""
    COUNTS[row, 0, WIDTH - 1] = requests


def answered(method, path, status, sent, seconds):
    """Record an answer. sent: its size in bytes; seconds: the time since the request's head."""
    observe(seconds, PLACES.get((path, str(status))) or PLACES[path, 'other'])
    if ACCESS_LOG:
        at = time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())
        line = dict(time=at, method=method, path=path, status=status, bytes=sent, ms=round(seconds * 1000, 3))
        with contextlib.suppress(OSError):  # the log's reader may go, or stall: lines that it does not take are lost
            if select.select([], [1], [], 0)[1]:
                os.write(1, json.dumps(line).encode() + b'\n')


def families():
    """Return the metrics of all workers."""
    import numpy as np  # late, as gunicorn's first process needs no NumPy

    seconds = HistogramMetricFamily(
        'sagemaker_request_seconds', 'Time from the head of a request to its answer', labels=['path', 'status']
    )
    batch = HistogramMetricFamily('sagemaker_batch_requests', 'Requests predicted together', labels=[])
    waiting = GaugeMetricFamily('sagemaker_requests_in_flight', 'Requests that are or will be predicted', labels=[])
    for labels, (*counts, total, now) in zip(PLACES, np.asarray(COUNTS).sum(axis=0)):
        buckets = list(zip([*map(str, map(float, LIMITS)), '+Inf'], np.cumsum(counts)))
        if any(counts):
            (seconds if labels else batch).add_metric(labels, buckets, total)
        if not labels:
            waiting.add_metric([], now)
    return seconds, batch, waiting


def exposition():
    """Return the metrics in Prometheus's format, bytes of type CONTENT_TYPE."""
    return generate_latest(types.SimpleNamespace(collect=families))
