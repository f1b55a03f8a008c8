"""What local mode asks of Docker and Compose, done with plain processes, for machines without Docker.

A container is then a process of this user, in a directory of its own, that runs our image's `train` or
`serve`. Nothing isolates it: it sees this machine's files and network, and a script's requirements are
installed for the notebook, too. Each has a file in DIRECTORY, by which it is found and ended from other
processes, also after a kernel was killed.
"""

import argparse
import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading

import psutil
import yaml
from local_mode import ROOT
from local_mode.docker import LABEL, is_our_image

DIRECTORY = pathlib.Path(tempfile.gettempdir(), f'{LABEL}-processes-{os.getuid()}')
OUT = {'context': sys.stderr}
KEPT = 'PATH', 'HOME', 'LANG', 'LC_ALL', 'TMPDIR', 'SSL_CERT_FILE', 'REQUESTS_CA_BUNDLE'
SERVER = ROOT / 'container' / 'sagemaker-chainer'
# As in container/Dockerfile.
IMAGE = {
    'PYTHONPATH': f'{SERVER}{os.pathsep}{ROOT / "local_mode" / "process"}',
    'PYTHONUNBUFFERED': '1',
    'PYTHONDONTWRITEBYTECODE': '1',
    'MPLBACKEND': 'Agg',
    'SAGEMAKER_TRAINING_MODULE': 'sagemaker_chainer_container.training:main',
}


class Container:
    """A process and what is known of it: name, labels, port, pid, when it was started, its exit code."""

    def __init__(self, path):
        self.path = path
        self.__dict__.update(json.loads(path.read_text()))

    def process(self):
        """Return the running process, or None."""
        try:
            process = psutil.Process(self.pid)
            running = (
                abs(process.create_time() - self.created) < 1 and process.status() != psutil.STATUS_ZOMBIE
            )
            return process if self.exit is None and running else None
        except psutil.NoSuchProcess:
            return None

    def has(self, key, value):
        """Return whether it passes one of Docker's filters that local mode uses."""
        if key == 'label':
            name, _, wanted = value.partition('=')
            return name in self.labels and wanted in ('', self.labels[name])
        if key == 'status':
            return value == ('running' if self.process() else 'exited')
        return value == {'publish': self.port}[key]

    def end(self, seconds=10):
        """SIGTERM, and after so many seconds SIGKILL for it and all that it has started."""
        if process := self.process():
            children = process.children(recursive=True)
            if seconds:
                process.terminate()
            _, alive = psutil.wait_procs([process], seconds)
            for left in [*alive, *children]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    left.kill()


def containers():
    """Return all that this user has."""
    mine = DIRECTORY.exists() and DIRECTORY.stat().st_uid == os.getuid()
    return [Container(path) for path in sorted(DIRECTORY.glob('*.json')) if mine]


def ps(stopped, filters, format):
    """Print a line for each container that passes all filters, of those for `status` one."""
    filters = [f.split('=', 1) for f in filters]
    states = [value for key, value in filters if key == 'status']
    others = [f for f in filters if f[0] != 'status']
    for container in containers():
        wanted = not states or any(container.has('status', state) for state in states)
        wanted = wanted and all(container.has(*f) for f in others)
        if wanted and (stopped or container.process()):
            state = 'Up' if container.process() else f'Exited ({container.exit})'
            line = format.replace('{{.Names}}', container.name).replace('{{.Status}}', state)
            for name in re.findall(r'\{\{\.Label "(.*?)"\}\}', line):
                line = line.replace(f'{{{{.Label "{name}"}}}}', container.labels.get(name, ''))
            print(line)


def remove(names):
    """End and forget containers."""
    for container in containers():
        if container.name in names:
            container.end(0)
            container.path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # is not empty, or not there
        DIRECTORY.rmdir()


def up(path):
    """Run the one service of a Compose file to its end; return its exit code."""
    services = yaml.safe_load(path.read_text())['services']
    (host, service), *others = services.items()
    if others or 'entrypoint' in service or not is_our_image(service['image']):
        image = service['image']
        sys.exit(f'Without Docker only `train` and `serve` of our image run, on one host: not {image}.')
    name = service.get('container_name', host)
    base = path.parent / f'{name}-ml'  # instead of /opt/ml
    mount(service['volumes'], base)
    port = service.get('ports', [':8080'])[0].split(':')[-2]
    program, environment = prepare(service, base, host, port)
    process = subprocess.Popen(
        program, cwd=base, env=environment, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    labels = {label: str(value) for label, value in service.get('labels', {}).items()}
    known = dict(name=name, labels=labels, port=port, pid=process.pid, exit=None)
    known['created'] = psutil.Process(process.pid).create_time()
    DIRECTORY.mkdir(mode=0o700, exist_ok=True)
    file = DIRECTORY / f'{name}.json'
    write(file, known)
    for number in signal.SIGTERM, signal.SIGINT:
        signal.signal(number, lambda *_: process.poll() is None and process.terminate())
    threading.Thread(target=end_group, args=(process,), daemon=True).start()
    for line in process.stdout:
        print(f'{name} |', line.decode('utf-8', 'replace'), end='', flush=True)
    known['exit'] = process.wait()
    if file.exists():  # nobody has removed it
        write(file, known)
    return known['exit'] & 255


def end_group(process):
    """As with a container nothing outlives its first process."""
    process.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def mount(volumes, base):
    """Make links below base of volumes, 'here:/opt/ml/there'."""
    for volume in sorted(volumes, key=lambda volume: volume.split(':')[1]):
        here, inside = volume.split(':')[:2]
        os.makedirs(here, exist_ok=True)  # as Docker does
        there = base / os.path.relpath(inside, '/opt/ml')
        there.parent.mkdir(parents=True, exist_ok=True)
        if there.exists() and not there.samefile(here):
            there.rmdir()  # where a mount would hide it
        if not there.exists():
            there.symlink_to(os.path.abspath(here))


def prepare(service, base, host, port):
    """Return the program of a service, and its environment, with base for /opt/ml."""
    given = dict(variable.replace('$$', '$').split('=', 1) for variable in service['environment'])
    ours = {k: v.replace('/opt/ml', str(base)) for k, v in given.items() if k.startswith('SAGEMAKER_')}
    environment = {k: os.environ[k] for k in KEPT if k in os.environ} | IMAGE | given | ours
    environment['SAGEMAKER_BASE_DIR'] = str(base)
    if service['command'] == 'train':
        config = base / 'input' / 'config'
        # The toolkit waits until a host's name is known.
        for name, old, new in ('hyperparameters', '/opt/ml', base), ('resourceconfig', host, 'localhost'):
            file = config / f'{name}.json'
            file.write_text(file.read_text().replace(old, str(new)))
        return [os.path.join(os.path.dirname(sys.executable), 'train')], environment
    environment |= {'SAGEMAKER_BIND_TO_PORT': port, 'SAGEMAKER_BIND_TO_HOST': '127.0.0.1'}
    environment['SM_MODEL_DIR'] = str(base / 'model')
    return [sys.executable, '-m', 'gunicorn', '-c', str(SERVER / 'gunicorn.conf.py')], environment


def write(file, known):
    file.with_suffix('.new').write_text(json.dumps(known))
    file.with_suffix('.new').rename(file)


def main(words):
    """Do what a docker command would; return the exit status."""
    parser = argparse.ArgumentParser(prog='docker', description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True)
    for name in 'info', 'context', 'images', 'network', 'rm', 'stop', 'ps', 'compose':
        command = commands.add_parser(name)
        command.add_argument('--format')
        for flag in '--quiet', '--all', '--force':
            command.add_argument('-' + flag[2], flag, action='store_true')
        command.add_argument('--filter', action='append', default=[])
        command.add_argument('--time', type=int, default=10)
        if name != 'compose':
            command.add_argument('rest', nargs='*')
    if words[0] == 'compose':
        if '-f' in words:
            return up(pathlib.Path(words[words.index('-f') + 1]))
        print('Docker Compose version v2, of processes')
        return 0
    args = parser.parse_args(words)
    if args.command == 'ps':
        ps(args.all, args.filter, args.format or '{{.Names}}')
    elif args.command == 'rm':
        remove(args.rest)
    elif args.command == 'stop':
        for container in containers():
            if container.name in args.rest:
                container.end(args.time)
    else:
        # The SDK takes a `context` that says anything on stderr for one of this machine.
        print(
            {'info': os.cpu_count(), 'images': 'processes'}.get(args.command, ''), file=OUT.get(args.command)
        )
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
