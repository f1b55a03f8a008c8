"""`make run` works without Docker, as an ordinary user, from a clone with an odd name."""

import os
import pathlib
import re
import shutil

import nbformat
import pytest
from support import ROOT, SHORT, TUTORIAL, edit, processes_with, run


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    """A home for both runs; the first begins with nothing, and the second has its downloads."""
    return tmp_path_factory.mktemp('home')


@pytest.mark.parametrize('compiler', [True, False], ids=['compiler', 'no compiler'])
def test_make_run_with_nothing_but_python_as_an_ordinary_user(tmp_path, home, compiler):
    """The whole tutorial runs without Docker, root or package manager, from a clone with an odd name."""
    hidden = r'docker|sudo|su$|apt|dpkg|uv' + ('' if compiler else r'|.*(gcc|g\+\+|clang)|cc$|c[89]9')
    tools = tmp_path / 'bin'
    tools.mkdir()
    for path in pathlib.Path('/usr/bin').iterdir():
        if not re.match(hidden, path.name):
            (tools / path.name).symlink_to(path)
    clone = tmp_path / 'my clône'
    run('git', 'clone', '--quiet', ROOT, clone, check=True)
    notebook = nbformat.read(TUTORIAL, as_version=4)
    edit(notebook, SHORT)  # test_notebook.py runs it as it is
    nbformat.write(notebook, clone / TUTORIAL.relative_to(ROOT))
    user = []
    if os.getuid() == 0:
        run('chown', '-R', '65534:65534', clone, home, check=True)
        for directory in (tmp_path, home, *tmp_path.parents):
            if directory.stat().st_mode & 0o777 == 0o700:  # of pytest's
                directory.chmod(0o755)
        user = 'setpriv --reuid=65534 --regid=65534 --clear-groups'.split()
    kept = {k: v for k, v in os.environ.items() if k.startswith(('PIP_', 'SSL_', 'REQUESTS_', 'CHAINER_'))}
    env = kept | {'PATH': str(tools), 'HOME': str(home), 'TMPDIR': str(home), 'LANG': 'C.UTF-8'}
    done = run(*[shutil.which(word) or word for word in user], tools / 'make', 'run', cwd=clone, env=env)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    assert ('no C compiler with' in done.stdout) != compiler
    assert 'without Docker' in done.stdout and 'nothing isolates' in done.stdout
    assert (clone / 'output' / 'chainer_mnist_local_mode.html').exists()
    assert not processes_with(f'TMPDIR={home}')
    assert not [name for name in os.listdir(home) if name.startswith('chainer-mnist-local-mode')]
