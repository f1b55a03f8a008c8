"""Ended scripts leave nothing, killed ones nothing after `make clean`; a second set-up changes nothing."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time

import pytest
from local_mode import endpoints
from local_mode.session import open_session
from support import IMAGE, ROOT, STOPPED_JOB, answers, docker, free_port, ours, run, stop_a_job


@pytest.mark.parametrize('end', ['', 'raise SystemExit(3)', 'raise ValueError("oops")'])
def test_a_script_that_ends_with_a_live_endpoint_ends_and_cleans_up(deploy, end):
    before = ours()
    assert 'deployed' in run(*deploy(free_port(), end), timeout=60).stdout  # the SDK alone would hang here
    assert ours() == before


def test_a_killed_notebook_leaves_what_deploy_names_and_make_clean_removes(deploy):
    run('make', 'clean', check=True)
    port = free_port()
    stranger = docker(f'run --detach --entrypoint sleep {IMAGE} 600').strip()
    streams = dict(text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    process = subprocess.Popen(deploy(port, 'input()'), cwd=ROOT, stdin=subprocess.PIPE, **streams)
    try:
        assert 'deployed\n' in iter(process.stdout.readline, '')
        process.send_signal(signal.SIGKILL)
        process.wait()
        (name,), networks, directories = ours()
        assert len(networks) == len(directories) == 1  # or this test shows nothing
        with contextlib.closing(open_session(embedded=True, serving_port=port)) as session:
            with pytest.raises(RuntimeError, match='docker rm -f ' + name):
                endpoints.check_serving_port(session)
        run('make', 'clean', check=True)
        assert ours() == ([], [], []) and not answers(port)
        assert docker(f'ps --quiet --no-trunc --filter id={stranger}').strip() == stranger
    finally:
        docker(f'rm --force {stranger}')


def test_stop_during_fit_stops_the_job(tmp_path):
    """The container ends before its directory is packed; nobody deploys the model of the job before."""
    before = ours()
    assert re.search(STOPPED_JOB, out := stop_a_job(tmp_path, 'docker')), out
    assert ours() == before


def test_set_up_twice_in_a_row_is_quick_and_changes_nothing():
    image = docker(f'images --quiet --no-trunc {IMAGE}')
    start = time.monotonic()
    done = run('./setup.sh', check=True)
    assert time.monotonic() - start < 15
    assert done.stdout.splitlines() == ['setup: ready']
    assert docker(f'images --quiet --no-trunc {IMAGE}') == image


def test_set_up_without_docker_and_without_a_package_manager_says_what_to_do(tmp_path):
    for name in 'bash dirname uname id cmp find sort xargs cat cksum sed mkdir mktemp mv rm tail'.split():
        (tmp_path / name).symlink_to(shutil.which(name))
    done = run(tmp_path / 'bash', './setup.sh', env=os.environ | {'PATH': str(tmp_path)})
    assert done.returncode == 1
    assert 'Docker is not installed: see https://docs.docker.com/get-docker/' in done.stderr


def test_set_up_tells_who_may_not_use_docker_and_installs_nothing(tmp_path):
    """Debian keeps dockerd from an ordinary user's PATH: it is not missing."""
    docker = tmp_path / 'docker'
    docker.write_text('#!/bin/sh\necho permission denied while trying to connect >&2\nexit 1\n')
    docker.chmod(0o755)
    for name in 'bash sh dirname uname id cmp find sort xargs cat cksum sed mkdir mktemp mv rm tail'.split():
        (tmp_path / name).symlink_to(shutil.which(name))
    done = run(tmp_path / 'bash', './setup.sh', env=os.environ | {'PATH': str(tmp_path)})
    assert done.returncode == 1 and 'installing' not in done.stdout
    assert 'You may not use Docker: sudo usermod -aG docker' in done.stderr and 'LOCAL_MODE=process' in done.stderr
