"""The documents' examples work: README's test, and the commands by hand in docs/image.md."""

import re
import shutil
import subprocess

from support import LABEL, ROOT, docker, free_port, ping, python, run, wait_for

MY_SCRIPT = """
import os
import chainer

def model_fn(model_dir):
    model = chainer.links.Linear(784, 10)
    chainer.serializers.load_npz(os.path.join(model_dir, 'model.npz'), model)
    return model

if __name__ == '__main__':
    path = os.path.join(os.environ['SM_MODEL_DIR'], 'model.npz')
    chainer.serializers.save_npz(path, chainer.links.Linear(784, 10))
"""


def test_readmes_test(tmp_path):
    (snippet,) = re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(), re.DOTALL)
    (tmp_path / 'test_mine.py').write_text(snippet)
    (tmp_path / 'my_script.py').write_text(MY_SCRIPT)
    (tmp_path / 'tests' / 'data').mkdir(parents=True)
    (tmp_path / 'tests' / 'data' / 'any').write_text('data')
    done = python('-m', 'pytest', 'test_mine.py', cwd=tmp_path)
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
