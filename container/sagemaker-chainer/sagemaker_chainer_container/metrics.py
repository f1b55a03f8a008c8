"""This module counts requests: for Prometheus at GET /metrics, and as JSON lines in the access log."""

import contextlib
import json
import os
import select
import time

METRICS = os.environ.get('SAGEMAKER_MODEL_SERVER_METRICS') != '0'
ACCESS_LOG = os.environ.get('SAGEMAKER_MODEL_SERVER_ACCESS_LOG') == '1'

if METRICS:  # all workers write into one directory, which gunicorn.conf.py creates
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, Histogram, generate_latest
    from prometheus_client.multiprocess import MultiProcessCollector

    CONTENT_TYPE = CONTENT_TYPE_LATEST
    help_text, labels = 'Time from the head of a request to its answer', ['path', 'status']
    limits = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60]
    SECONDS = Histogram('sagemaker_request_seconds', help_text, labels, buckets=limits)
    BATCH = Histogram('sagemaker_batch_requests', 'Requests predicted together', buckets=[1, 2, 4, 8, 16, 32])
    help_text = 'Requests that are or will be predicted'
    IN_FLIGHT = Gauge('sagemaker_requests_in_flight', help_text, multiprocess_mode='livesum')


def in_flight(requests):
    """Record how many requests wait for a prediction or are being predicted."""
    if METRICS:
        IN_FLIGHT.set(requests)


def predicted(batch, waiting):
    """Record a batch of this many requests, and how many still wait."""
    if METRICS:
        BATCH.observe(batch)
        IN_FLIGHT.set(waiting)


def answered(method, path, status, sent, seconds):
    """Record an answer. sent: its size in bytes; seconds: the time since the request's head."""
    if METRICS:
        SECONDS.labels(path, status).observe(seconds)
    if ACCESS_LOG:
        at = time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())
        line = dict(time=at, method=method, path=path, status=status, bytes=sent, ms=round(seconds * 1000, 3))
        with contextlib.suppress(OSError):  # the log's reader may go, or stall: lines that it does not take are lost
            if select.select([], [1], [], 0)[1]:
                os.write(1, json.dumps(line).encode() + b'\n')


def exposition():
    """Return the metrics of all workers, bytes of type CONTENT_TYPE."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    return generate_latest(registry)
