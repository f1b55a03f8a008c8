"""The documents' examples work: README's test, and the commands by hand in docs/image.md."""

import re
import shutil
import subprocess

from support import LABEL, ROOT, docker, free_port, ping, python, run, wait_for


def test_readmes_test(readmes_project):
    done = python('-m', 'pytest', 'test_mine.py', cwd=readmes_project)
    assert '1 passed' in done.stdout, done.stdout + done.stderr


def test_the_contract_by_hand(tmp_path, small_mnist, code):
    text = (ROOT / 'docs' / 'image.md').read_text().partition('## By hand')[2]
    commands = '\n'.join(re.findall(r'^    (.*)', text, re.MULTILINE))
    prepare, train, serve = re.split(r'^(?=docker run)', commands, flags=re.MULTILINE)
    shutil.copytree(code, tmp_path, dirs_exist_ok=True)
    run('bash', '-ec', prepare, cwd=tmp_path, check=True)
    shutil.copytree(small_mnist, tmp_path / 'ml' / 'input' / 'data', dirs_exist_ok=True)
    run('bash', '-ec', train, cwd=tmp_path, check=True)
    assert (tmp_path / 'ml' / 'model' / 'model.npz').exists()

    port, name = free_port(), f'by-hand-{free_port()}'
    ours = f'--rm --name {name} --label {LABEL}=by-hand'
    serve = serve.replace('8080:8080', f'{port}:8080').replace('--rm', ours)
    server = subprocess.Popen(['bash', '-c', serve], cwd=tmp_path)
    try:
        wait_for(lambda: ping(f'http://127.0.0.1:{port}') or server.poll() is not None)
        assert server.poll() is None
    finally:
        docker(f'rm --force {name}')
        server.wait()
