"""How `serve` runs serving.py: as many single-model workers as SageMaker or the CPU quota say."""
import os

from cpus import cpus

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
os.environ.setdefault('OPENBLAS_NUM_THREADS', str(max(1, cpus() // workers)))


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
    os.environ['SAGEMAKER_SUBMIT_DIRECTORY'] = directory
