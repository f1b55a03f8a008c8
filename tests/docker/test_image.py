"""The image holds its locked packages and the names that we patch, and uses the CPUs of its quota."""

import re

from packaging.utils import canonicalize_name
from support import IMAGE, ROOT, docker


def python(code, options=''):
    """Run code in the image; return its output."""
    return docker(f'run --rm {options} {IMAGE} python -c', code)


def test_the_image_holds_what_it_promises():
    code = (
        'import sys, chainer, numpy, matplotlib, scipy; from mpi4py import MPI; '
        'print(*sys.version_info[:2], chainer.__version__, numpy.__version__, MPI.COMM_WORLD.size)'
    )
    assert python(code).split() == ['3', '13', '7.8.1', '2.5.5', '1']
    code = 'from mpi4py.MPI import COMM_WORLD as c; ranks = c.gather(c.rank); c.rank or print(ranks)'
    mpirun = f'run --rm {IMAGE} mpirun --allow-run-as-root -n 2 python -c'
    assert docker(mpirun, code) == '[0, 1]\n'
    assert 'No broken requirements' in docker(f'run --rm {IMAGE} pip check')
    assert int(docker(f'image inspect --format {{{{.Size}}}} {IMAGE}')) < 600e6


def test_the_image_holds_what_is_locked(pins, built):
    """Two builds of one commit have the same Python packages."""
    code = 'import importlib.metadata as m; print(*[f"{d.name}={d.version}" for d in m.distributions()])'
    installed = dict(package.split('=') for package in python(code).split())
    installed = {canonicalize_name(name): version for name, version in installed.items()}
    environment = {'python_version': '3.13', 'python_full_version': '3.13.5'}
    environment |= {'sys_platform': 'linux', 'platform_system': 'Linux'}
    asked, locked = (pins(f'container/requirements.{kind}', environment) | built for kind in ('txt', 'lock'))
    assert asked.items() <= installed.items() <= (locked | {'pip': installed['pip']}).items()
    packages = docker(f'run --rm {IMAGE} dpkg-query --show --showformat', '${Package} ').split()
    assert {'libc6', 'python3.13-minimal', 'openssh-server'} <= {*packages}


PATCHED = """
sagemaker_training.mpi:_orted_process
sagemaker_training.mpi:_write_env_vars_to_file
sagemaker_training.mpi:time.sleep
sagemaker_training.mpi:MPI_FINISHED_STATUS_FILE
uvicorn.protocols.http.httptools_impl:HttpToolsProtocol
uvicorn_worker:UvicornWorker.handle_exit
""".split()
HOOKS = 'connection_made data_received on_headers_complete on_body on_message_complete send_400_response'
CALLED = (
    """
sagemaker_training.entry_point:run
sagemaker_training.errors:ExecuteUserScriptError
sagemaker_training.runner:MPIRunnerType
uvicorn_worker:UvicornWorker.CONFIG_KWARGS
""".split()
    + [f'{PATCHED[4]}.{name}' for name in HOOKS.split()]
)


def test_every_patched_name_is_there_and_the_page_names_it():
    python(f'import pkgutil; [pkgutil.resolve_name(name) for name in {PATCHED + CALLED}]')  # or raises
    page = (ROOT / 'docs' / 'patches.md').read_text()
    assert not [name for name in PATCHED if re.split('[:.]', name)[-1] not in page]


def test_the_cpu_quota_sets_the_number_of_workers():
    code = 'from sagemaker_chainer_container.cpus import cpus; print(cpus())'
    assert [python(code, f'--cpus {quota}') for quota in ('1', '1.5')] == ['1\n', '2\n']


SAYS = """
import ctypes, os, chainer, numpy
from chainer.backends import intel64
core = ctypes.CDLL(numpy._core._multiarray_umath.__file__).scipy_openblas_get_corename64_
core.restype = ctypes.c_char_p
threads, tunables = os.environ["OPENBLAS_NUM_THREADS"], os.environ["GLIBC_TUNABLES"]
print("RESULT", threads, tunables, bool(intel64.should_use_ideep(">=auto") and intel64.ideep.dnn), core().decode())
"""


def test_training_in_the_image_is_fast_and_uses_the_quota(opt_ml):
    root = opt_ml(sagemaker_program='mine.py')
    (root / 'code' / 'mine.py').write_text(SAYS)
    for options, fast in ('', True), ('--env CHAINER_FAST=0', False):
        log = docker(f'run --rm --hostname algo-1 --cpus 1 {options} -v {root}:/opt/ml {IMAGE} train')
        result = re.search(rf'RESULT 1 glibc.malloc.hugetlb=1 {fast} (.*)', log)
        assert result[1] != 'Prescott'  # which OpenBLAS takes CPUs for that it does not know


def test_chainer_fast_passes_its_tests():
    """Here are oneDNN's convolutions, which this machine may lack."""
    code = (
        'pip install --quiet --root-user-action ignore --target /tmp/pytest pytest==9.2.0 && '
        'PYTHONPATH=/tmp/pytest python -m pytest -q -p no:cacheprovider container/chainer_fast || true'
    )
    log = docker(f'run --rm --volume "{ROOT}":/repository:ro --workdir /repository {IMAGE} sh -c', code)
    assert ' passed' in log and ' failed' not in log and ' error' not in log, log
