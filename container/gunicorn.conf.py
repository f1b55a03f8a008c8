"""How `serve` runs serving.py: as many single-model workers as SageMaker or the CPU quota say."""

import os
import signal
import site

from cpus import blas_settings, cpus

bind = '0.0.0.0:' + os.environ.get('SAGEMAKER_BIND_TO_PORT', '8080')
workers = int(os.environ.get('SAGEMAKER_MODEL_SERVER_WORKERS') or cpus())
worker_class = 'asgi'
asgi_lifespan = 'off'
asgi_loop = 'asyncio'
http_parser = 'python'  # gunicorn_h1c 0.6.9 loses one in ten keep-alive connections after bodies of 3 MB
keepalive = 75
timeout = int(os.environ.get('SAGEMAKER_MODEL_SERVER_TIMEOUT', 60))
graceful_timeout = 5
control_socket_disable = True  # nothing inside the container manages it
worker_tmp_dir = '/dev/shm'  # heartbeats must not wait for a disk
wsgi_app = 'serving:create_app()'

# Before any worker imports NumPy: workers that share the cores must not each use them all.
os.environ.update(blas_settings(workers))


def on_starting(server):
    """Fetch and install the user's code once, before the workers import it."""
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


def post_worker_init(worker):
    """Stop quickly, and spread connections: a worker that has some leaves new ones to the others for 1 to 4 ms.

    By itself the worker that wakes first takes all that wait, and another idles. Here it takes one at a
    time, and more once it has many: each turn of its loop takes longer then.
    """
    loop = worker.loop
    create_server = loop.create_server

    async def create_patient_server(protocol, *, sock, **kwargs):
        def wait():
            loop.remove_reader(sock)
            loop.call_later(min(worker.nr_conns + len(tasks), 4) / 1000, accept)

        def accept():
            if sock.fileno() < 0:  # closed meanwhile
                return
            loop.add_reader(sock, wait)
            for _ in range(1 + worker.nr_conns // 4):
                try:
                    connection, _ = sock.accept()
                except OSError:  # another worker has taken it
                    return
                connection.setblocking(False)
                tasks.add(task := loop.create_task(loop.connect_accepted_socket(protocol, connection)))
                task.add_done_callback(tasks.discard)

        tasks = set()  # connections accepted, but not yet counted
        server = await create_server(protocol, sock=sock, **{**kwargs, 'start_serving': False})
        sock.setblocking(False)
        loop.add_reader(sock, wait)
        return server

    loop.create_server = create_patient_server

    def stop():
        """Stop once the requests in flight are answered; gunicorn would wait for idle connections, too."""
        worker.handle_exit_signal()
        if worker.asgi.in_flight:
            loop.call_later(0.05, stop)
        else:
            loop.call_later(0.05, worker.handle_quit_signal)  # the last answer is on its way

    loop.add_signal_handler(signal.SIGTERM, stop)
