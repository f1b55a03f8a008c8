"""How `serve` runs: as many single-model workers as SageMaker or the CPU quota say."""

import logging
import os
import shutil
import site
import socket
import tempfile

from sagemaker_chainer_container.cpus import blas_settings, cpus

host = os.environ.get('SAGEMAKER_BIND_TO_HOST', '0.0.0.0')  # set where it runs outside of a container
bind = f'{host}:{os.environ.get("SAGEMAKER_BIND_TO_PORT", "8080")}'
workers = int(os.environ.get('SAGEMAKER_MODEL_SERVER_WORKERS') or cpus())
worker_class = 'sagemaker_chainer_container.worker.Worker'
wsgi_app = 'sagemaker_chainer_container.serving:create_app()'
loglevel = logging.getLevelName(int(os.environ.get('SAGEMAKER_CONTAINER_LOG_LEVEL', logging.INFO)))
keepalive = 75
reuse_port = True  # at a shared socket the same worker is always first
timeout = int(os.environ.get('SAGEMAKER_MODEL_SERVER_TIMEOUT', 60))
graceful_timeout = 5
control_socket_disable = True  # nothing inside the container manages it
has_metrics = os.environ.get('SAGEMAKER_MODEL_SERVER_METRICS') != '0'
worker_tmp_dir = '/dev/shm' if os.path.isdir('/dev/shm') else None  # heartbeats must not wait for a disk

# Before any worker imports NumPy: workers that share the cores must not each use them all.
os.environ.update(blas_settings(workers))


def on_starting(server):
    """Fetch and install the user's code once, before the workers import it."""
    host, port = server.cfg.address[0]
    # With reuse_port it would else share the port with a server that is there already.
    socket.create_server((host, port), family=socket.AF_INET6 if ':' in host else socket.AF_INET).close()
    directory = os.environ.get('SAGEMAKER_SUBMIT_DIRECTORY', '/opt/ml/code')
    if not os.path.isdir(directory):  # s3://.../sourcedir.tar.gz
        from sagemaker_training import files

        files.download_and_extract(directory, '/opt/ml/code')
        directory = '/opt/ml/code'
    if os.path.exists(os.path.join(directory, 'requirements.txt')):
        from sagemaker_training import modules

        modules.install_requirements(directory)
        site.addsitedir(site.getusersitepackages())  # where pip installs for others than root; it is new
    os.environ['SAGEMAKER_SUBMIT_DIRECTORY'] = directory
    if has_metrics:  # the workers write theirs there
        shared = tempfile.mkdtemp(dir=os.environ.get('SAGEMAKER_BASE_DIR'))
        os.chown(shared, server.cfg.uid, server.cfg.gid)
        os.environ['PROMETHEUS_MULTIPROC_DIR'] = shared


def post_fork(server, worker):
    """Let the worker listen when it has loaded the model: gunicorn's socket does so already."""
    family, address = worker.sockets[0].family, worker.sockets[0].getsockname()
    worker.sockets[0].close()
    # Four, as uvloop takes in one connection of each a turn.
    worker.sockets = [socket.socket(family) for _ in range(4)]
    for own in worker.sockets:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        own.bind(address)


def child_exit(server, worker):
    """Count what a worker has answered on, but not what it had in flight."""
    if has_metrics:
        from prometheus_client.multiprocess import mark_process_dead

        mark_process_dead(worker.pid)


def on_exit(server):
    if has_metrics:
        shutil.rmtree(os.environ['PROMETHEUS_MULTIPROC_DIR'], ignore_errors=True)
