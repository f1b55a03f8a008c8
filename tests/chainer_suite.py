"""This script runs Chainer's and ChainerMN's own tests in the image, without and with chainer_fast.

`make test-chainer` calls it. The tests come from the clone that the variable CHAINER names, or
from GitHub. Logs and JUnit's XML stay in output/chainer_suite.
"""

import collections
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree

from chainer.dataset import download
from local_mode.docker import image_uri

IMAGE = image_uri('local')
OUTPUT = pathlib.Path('output/chainer_suite').resolve()
MODES = {'plain': {'CHAINER_FAST': '0'}, 'fast': {'CHAINER_FAST': '1'}}  # environments; chainer_examples.py's, too
# {part: its least number of tests that are not skipped}; ChainerMN has a part for each rank; the tests of iDeep, whose
# interface chainer_fast has, run with it only.
PARTS = {'chainer': 17_000, 'ideep': 3_000, 'chainermn-0': 170, 'chainermn-1': 170}
# Edits to the test files themselves: (folder, regular expression, replacement).
EDITS = [
    # NumPy 2 has these under other names only.
    ('chainer_tests', r'\bnumpy\.product\b', 'numpy.prod'),
    ('chainer_tests', r'\bnumpy\.complex_', 'numpy.complex128'),
    ('chainer_tests', r'\b(?:numpy|np)\.(bool|int|object)\b', r'\1'),
    # An array of one element is no longer a float.
    ('chainer_tests/functions_tests/math_tests/test_det.py', r'float\((scaling \*\* .*)\)', r'(\1).item()'),
    # NumPy 2 raises for a number outside its dtype, here a padding of -1 among unsigned integers.
    (
        'chainer_tests/functions_tests/array_tests/test_pad_sequence.py',
        r'self\.dtype\((self\.pad)\)',
        r'numpy.array(\1).astype(self.dtype)',
    ),
    # In NumPy 2 a float16 plus a Python float is a float16, so the expected value would lose its float64.
    (
        'chainer_tests/functions_tests/loss_tests/test_softmax_cross_entropy.py',
        r'(loss_expect =) 0\.0$',
        r'\1 numpy.float64(0)',
    ),
    # The tests assume ChainerX, which the image lacks; keep their NumPy cases.
    ('chainermn_tests', r"('use_chx', )\[True, False\]", r'\1[False]'),
    ('chainermn_tests', r'\[chainerx, np\]', '[np]'),
    ('chainermn_tests', r'^ *\(True, "native:0"\),\n', ''),
    (
        'chainermn_tests',
        r'^( *)self\.\w+\(\s*(chx[.)]|comm, model, False, True\)|use_gpu=False, use_chx=True\)).*',
        r'\1pass',
    ),
]

# A test that hangs ends its process, and mpirun ends the other. A process that wrote its results succeeded.
SCRIPT = r"""
pip install --quiet --root-user-action ignore --target /tmp/lib \
    pytest==9.2.0 pytest-timeout==2.4.0 mock==5.2.0
python -c 'import chainer, os
fast = chainer.backends.intel64.should_use_ideep(">=auto")
assert fast == (os.environ["CHAINER_FAST"] == "1"), "chainer_fast?"'
cp -r /suite /tmp/suite
cd /tmp/suite
set -- -o addopts= -p no:cacheprovider -W ignore --continue-on-collection-errors \
    --timeout 600 --timeout-method thread
others="slow or gpu or cudnn or chainerx or multi_gpu or theano"
python -m pytest "$@" -q -m "not (ideep or $others)" \
    --junitxml /output/chainer.xml tests/chainer_tests >/output/chainer.log 2>&1 || true
[ $CHAINER_FAST = 0 ] || python -m pytest "$@" -q -m "ideep and not ($others)" \
    --junitxml /output/ideep.xml tests/chainer_tests >/output/ideep.log 2>&1 || true
mpirun --allow-run-as-root --oversubscribe -n 2 \
    -mca mpi_yield_when_idle 1 -mca btl_vader_single_copy_mechanism none sh -c '
    out=/output/chainermn-$OMPI_COMM_WORLD_RANK
    python -m pytest "$@" -v -m "not (slow or gpu)" -k "not chx" \
        --junitxml $out.xml tests/chainermn_tests >$out.log 2>&1
    [ -e $out.xml ]' sh "$@"
"""


def extract(folder, *paths):
    """Copy these of Chainer's files into a folder."""
    clone = os.environ.get('CHAINER')
    if not clone:
        clone = folder / 'clone'
        subprocess.run(
            [
                'git',
                '-c',
                'advice.detachedHead=false',
                'clone',
                '--quiet',
                '--depth',
                '1',
                '--branch',
                'v7.8.1',
                'https://github.com/chainer/chainer',
                clone,
            ],
            check=True,
        )
    archive = subprocess.run(['git', '-C', clone, 'archive', 'v7.8.1', *paths], check=True, capture_output=True)
    subprocess.run(['tar', '-x', '-C', folder], input=archive.stdout, check=True)


def fetch(folder):
    """Copy Chainer's tests into a folder and apply EDITS."""
    extract(folder, 'setup.cfg', 'tests')
    for place, old, new in EDITS:
        path, edited = folder / 'tests' / place, 0
        for file in path.rglob('*.py') if path.is_dir() else [path]:
            text, count = re.subn(old, new, file.read_text(), flags=re.MULTILINE)
            file.write_text(text)
            edited += count
        assert edited, f'there is no {old} in {place}'


def run(folder):
    """Run all tests, plain and fast side by side, and print the progress."""
    containers = {f'chainer-suite-{mode}-{os.getpid()}': mode for mode in MODES}
    mnist = 'pfnet/chainer/mnist'
    try:
        processes = [
            subprocess.Popen(
                [
                    'docker',
                    'run',
                    '--rm',
                    '--init',
                    '--name',
                    name,
                    '--label',
                    'chainer-mnist-local-mode',
                    '--volume',
                    f'{folder}:/suite:ro',
                    '--volume',
                    f'{OUTPUT / mode}:/output',
                    '--volume',
                    f'{download.get_dataset_root()}/{mnist}:/tmp/home/.chainer/dataset/{mnist}:ro',
                    *[f'--env={key}={value}' for key, value in MODES[mode].items()],
                    '--env',
                    'OPENBLAS_NUM_THREADS=1',
                    '--env',
                    'PYTHONPATH=/tmp/lib',
                    '--env',
                    'PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION=python',  # for Caffe's old generated code
                    '--env',
                    'CHAINER_TEST_PAIRWISE_PARAMETERIZATION='
                    + os.environ.get('CHAINER_TEST_PAIRWISE_PARAMETERIZATION', 'always'),
                    IMAGE,
                    'sh',
                    '-ec',
                    SCRIPT,
                ]
            )
            for name, mode in containers.items()
        ]
        started = time.monotonic()
        while any(process.poll() is None for process in processes):
            time.sleep(1)
            if not int(time.monotonic() - started) % 30:
                print(
                    f'{time.monotonic() - started:4.0f} s', *[f'{mode}: {progress(mode)}' for mode in MODES], sep='  '
                )
    finally:
        subprocess.run(['docker', 'rm', '--force', *containers], capture_output=True)


def progress(mode):
    """Return the part that is running, and how much of it is done."""
    logs = [OUTPUT / mode / 'chainer.log', OUTPUT / mode / 'chainermn-0.log']
    logs = [log for log in logs if log.exists()]
    if not logs:
        return 'starting'
    done = re.findall(r'\[ *(\d+%)\]', logs[-1].read_text())
    return f'{logs[-1].stem} {done[-1] if done else ""}'


def results(mode, part):
    """Return the numbers of passed, failed and skipped tests, {failing test: message}, and the seconds."""
    file = OUTPUT / mode / f'{part}.xml'
    if not file.exists():  # its process was ended, or never began
        return collections.Counter(failed=1), {'did not finish': f'see {file.with_suffix(".log")}'}, 0
    suite = xml.etree.ElementTree.parse(file).find('testsuite')
    counts, failing = collections.Counter(), {}
    for test in suite.iter('testcase'):
        ends = {end.tag: end.get('message', '') for end in test}
        message = ends.get('failure', ends.get('error'))
        counts['failed' if message is not None else 'skipped' if 'skipped' in ends else 'passed'] += 1
        if message is not None:
            failing[f'{test.get("classname")}.{test.get("name")}'] = message.partition('\n')[0]
    return counts, failing, float(suite.get('time'))


def report():
    """Print the results; return whether all tests passed."""
    print(f'{"":20}{"passed":>8}{"failed":>8}{"skipped":>8}{"seconds":>8}')
    well, failing = True, {}
    for part, least in PARTS.items():
        ran = []
        for mode in MODES if part != 'ideep' else ['fast']:
            counts, failed, seconds = results(mode, part)
            print(
                f'{part:12} {mode:7}'
                + ''.join(f'{counts[end]:8}' for end in ('passed', 'failed', 'skipped'))
                + f'{seconds:8.0f}'
            )
            ran.append(counts['passed'] + counts['failed'])
            for test, message in failed.items():
                failing.setdefault(f'{part}: {test}', {})[mode] = message
        if len(set(ran)) > 1 or min(ran) < least:
            print(f'{part}: not the same number of tests, or fewer than {least}')
            well = False
    for test, messages in failing.items():
        print(f'\n{test}', *[f'  {mode}: {message}' for mode, message in messages.items()], sep='\n')
    return well and not failing


if __name__ == '__main__':
    shutil.rmtree(OUTPUT, ignore_errors=True)
    for mode in MODES:
        (OUTPUT / mode).mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix='chainer-mnist-local-mode-') as folder:
        fetch(pathlib.Path(folder))
        run(folder)
    sys.exit(not report())
