"""gunicorn's settings for `serve`: one worker for each CPU, or as many as SageMaker sets."""

import logging
import os
import signal
import site
import socket

from sagemaker_chainer_container import metrics
from sagemaker_chainer_container.cpus import blas_settings, cpus

listener = os.environ.get('SAGEMAKER_BIND_TO_FD')  # a listening socket, which local mode without Docker passes on
bind = f'fd://{listener}' if listener else f'0.0.0.0:{os.environ.get("SAGEMAKER_BIND_TO_PORT", "8080")}'
workers = int(os.environ.get('SAGEMAKER_MODEL_SERVER_WORKERS') or cpus())
worker_class = 'sagemaker_chainer_container.worker.Worker'
wsgi_app = 'sagemaker_chainer_container.serving:create_app()'
loglevel = logging.getLevelName(int(os.environ.get('SAGEMAKER_CONTAINER_LOG_LEVEL', logging.INFO)))
keepalive = 75
reuse_port = not listener  # on one shared socket the same worker would take most connections
timeout = int(os.environ.get('SAGEMAKER_MODEL_SERVER_TIMEOUT', 60))
graceful_timeout = 28  # SageMaker kills a container 30 seconds after SIGTERM
control_socket_disable = True  # nothing in the container uses it
worker_tmp_dir = '/dev/shm' if os.path.isdir('/dev/shm') else None  # heartbeats must not wait for a disk

# Set before a worker imports NumPy, so that each worker uses its part of the cores only.
os.environ.update(blas_settings(workers))


def on_starting(server):
    """Download the user's code and install its requirements, once, before the workers import it."""
    # A worker that ends with 3 or 4, gunicorn's codes for one that cannot start, would stop the server.
    server.WORKER_BOOT_ERROR = server.APP_LOAD_ERROR = 78
    if not listener:
        host, port = server.cfg.address[0]
        # Fail if another server has the port: with reuse_port both would get connections.
        socket.create_server((host, port), family=socket.AF_INET6 if ':' in host else socket.AF_INET).close()
    directory = os.environ.get('SAGEMAKER_SUBMIT_DIRECTORY', '/opt/ml/code')
    if not os.path.isdir(directory):  # s3://.../sourcedir.tar.gz
        from sagemaker_training import files

        files.download_and_extract(directory, '/opt/ml/code')
        directory = '/opt/ml/code'
    if os.path.exists(os.path.join(directory, 'requirements.txt')):
        from sagemaker_training import modules

        modules.install_requirements(directory)
        site.addsitedir(site.getusersitepackages())  # pip has just created it, if it does not run as root
    os.environ['SAGEMAKER_SUBMIT_DIRECTORY'] = directory


def pre_fork(server, worker):
    """Give the worker a row of the metrics that no living worker has."""
    worker.row = min(set(range(metrics.ROWS)).difference(other.row for other in server.WORKERS.values()), default=0)


def when_ready(server):
    """Ignore SIGHUP: there is nothing to load anew, and a worker that closes its sockets loses connections."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def post_fork(server, worker):
    """Give the worker sockets of its own, which listen only after it has loaded the model."""
    metrics.row = worker.row
    if listener:
        return
    family, address = worker.sockets[0].family, worker.sockets[0].getsockname()
    worker.sockets[0].close()
    # Four sockets, as uvloop accepts one connection from each per iteration.
    worker.sockets = [socket.socket(family) for _ in range(4)]
    for own in worker.sockets:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        own.bind(address)


def child_exit(server, worker):
    """Keep a dead worker's counters, but not its requests in flight."""
    metrics.COUNTS[worker.row, 0, metrics.WIDTH - 1] = 0
