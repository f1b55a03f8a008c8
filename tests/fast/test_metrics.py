"""The server reports requests at GET /metrics and in a log of JSON lines."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support import JSON, NPY, http, npy, ping, post, wait_for

COUNT = 'sagemaker_request_seconds_count'


def metrics(url):
    """Return the metrics as {(name, labels): value}."""
    response = http.request('GET', url + '/metrics')
    assert response.status == 200 and response.headers['Content-Type'].startswith('text/plain')
    families = text_string_to_metric_families(response.data.decode())
    return {(sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples}


@pytest.mark.slow
def test_metrics_are_of_all_workers_dead_ones_too(serving, tmp_path):
    (tmp_path / 'mine.py').write_text(
        'import os\ndef model_fn(d): return os.getpid\ndef predict_fn(data, model): return [model()]\n'
    )
    with serving(tmp_path, 'mine.py', workers=2) as url:
        time.sleep(1)  # /ping may answer before the other worker is up
        pids = []
        for _ in range(40):
            http.clear()  # the next connection may be another worker's
            pids.append(json.loads(post(url, b'[1]', JSON, JSON).data)[0])
        assert len(set(pids)) == 2
        http.request('GET', url + '/nothing')
        post(url, b'[', JSON, JSON)
        before = metrics(url)
        assert before[COUNT, '/invocations', '200'] == 40 and before[COUNT, '/invocations', '400'] == 1
        assert before[COUNT, 'other', '404'] == 1 and before['sagemaker_batch_requests_sum',] == 41
        assert before['sagemaker_requests_in_flight',] == 0
        assert 0 < before['sagemaker_request_seconds_sum', '/invocations', '200'] < 40
        os.kill(pids[0], signal.SIGKILL)
        wait_for(lambda: ping(url), 20)
        assert metrics(url)[COUNT, '/invocations', '200'] == 40


FULL = """#!/bin/sh
exec unshare --map-root-user --mount sh -ec '
    for d in {0} /dev/shm; do
        mount -t tmpfs -o size=64k tmpfs $d
        head -c 56k /dev/zero > $d/full 2>&- || true
    done
    exec {1} "$@"' sh "$@"
"""


@pytest.mark.slow
def test_full_disks_cost_no_answer(serving, code, model, tmp_path, monkeypatch):
    (tmp_path / 'tmp').mkdir()
    wrapper = tmp_path / 'python'
    wrapper.write_text(FULL.format(shlex.quote(str(tmp_path / 'tmp')), sys.executable))
    wrapper.chmod(0o755)
    if subprocess.run([wrapper, '-c', ''], capture_output=True).returncode:
        pytest.skip('this user may not mount')
    monkeypatch.setattr(sys, 'executable', str(wrapper))
    monkeypatch.setenv('TMPDIR', str(tmp_path / 'tmp'))
    with serving(code, 'chainer_mnist_single_machine.py', model, workers=2) as url:
        for _ in range(20):
            http.clear()
            assert post(url, npy(np.zeros((1, 784), np.float32)), NPY).status == 200
        assert metrics(url)[COUNT, '/invocations', '200'] == 20


def test_a_variable_turns_each_on_or_off(start, code, model):
    settings = {'SAGEMAKER_MODEL_SERVER_METRICS': '0', 'SAGEMAKER_MODEL_SERVER_ACCESS_LOG': '1'}
    process, url = start(code, 'chainer_mnist_single_machine.py', model, **settings)
    try:
        wait_for(lambda: ping(url), 30)
        assert http.request('GET', url + '/metrics').status == 404
        sent = post(url, npy(np.zeros((1, 784), np.float32)), NPY).data
    finally:
        http.clear()
        process.terminate()
        log, _ = process.communicate(timeout=20)
    line = json.loads(re.search(r'^{.*"/invocations".*}$', log, re.MULTILINE)[0])
    assert (line['method'], line['status'], line['bytes']) == ('POST', 200, len(sent))
    assert 0 < line['ms'] < 5000 and re.fullmatch(r'[-0-9]{10}T[:0-9]{8}Z', line['time'])
