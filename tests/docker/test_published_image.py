"""`python -m local_mode image` pulls the right published image, and builds instead of a wrong one."""

import gzip
import hashlib
import io
import json
import shutil
import subprocess
import tarfile

import pytest
from local_mode import images
from local_mode.__main__ import main
from support import IMAGE, answers, docker, free_port, http, wait_for

NAME = 'chainer-mnist-set-up-test'  # of the image, here in place of sagemaker-chainer
OCI = 'application/vnd.oci.image'
MANIFEST, INDEX = f'{OCI}.manifest.v1+json', f'{OCI}.index.v1+json'
MARK = b'"published": "yes"'
pytestmark = pytest.mark.skipif(not shutil.which('docker-registry'), reason='no docker-registry: needs apt')


class Registry:
    def __init__(self, root):
        self.port, self.root = free_port(), root
        self.name = f'127.0.0.1:{self.port}/published'
        self.url = f'http://127.0.0.1:{self.port}/v2/published'
        storage = {'filesystem': {'rootdirectory': str(root / 'storage')}}
        config = {'version': '0.1', 'storage': storage, 'http': {'addr': f'127.0.0.1:{self.port}'}}
        (root / 'config.yml').write_text(json.dumps(config))

    def put(self, content, kind):
        """Store content in the registry; return its descriptor."""
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        digest = 'sha256:' + hashlib.sha256(content).hexdigest()
        if kind in (MANIFEST, INDEX):
            url = f'{self.url}/manifests/{digest}'
        else:
            url = http.request('POST', f'{self.url}/blobs/uploads/').headers['Location'] + f'&digest={digest}'
        response = http.request('PUT', url, body=content, headers={'Content-Type': kind})
        assert response.status == 201, response.data
        return {'mediaType': kind, 'digest': digest, 'size': len(content)}

    def publish(self, source):
        """Publish a tiny image for both architectures; return its name with the index's digest."""
        tar = io.BytesIO()
        with tarfile.open(fileobj=tar, mode='w') as archive:
            archive.add(__file__, 'file')
        layer = self.put(gzip.compress(tar.getvalue()), f'{OCI}.layer.v1.tar+gzip')
        rootfs = {'type': 'layers', 'diff_ids': ['sha256:' + hashlib.sha256(tar.getvalue()).hexdigest()]}
        labels, manifests = {'source': source, 'published': 'yes'}, []
        for architecture in 'amd64', 'arm64':
            platform = {'architecture': architecture, 'os': 'linux'}
            config = platform | {'config': {'Labels': labels}, 'rootfs': rootfs}
            parts = {'config': self.put(config, f'{OCI}.config.v1+json'), 'layers': [layer]}
            manifest = self.put({'schemaVersion': 2, 'mediaType': MANIFEST} | parts, MANIFEST)
            manifests.append(manifest | {'platform': platform})
        parts = {'manifests': manifests, 'annotations': {'published': 'yes'}}
        return f'{self.name}@' + self.put({'schemaVersion': 2, 'mediaType': INDEX} | parts, INDEX)['digest']

    def tamper(self, part):
        """Change the stored blobs that contain a text, the index or the configs."""
        contents = {path: path.read_bytes() for path in self.root.rglob('data')}
        found = [path for path, content in contents.items() if f'"{part}"'.encode() in content]
        assert found and all(MARK in contents[path] for path in found)
        for path in found:
            path.write_bytes(contents[path].replace(MARK, b'"published": "not"'))


@pytest.fixture
def registry(tmp_path):
    registry = Registry(tmp_path)
    command = ['docker-registry', 'serve', str(tmp_path / 'config.yml')]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: answers(registry.port))
        yield registry
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture
def get_image(registry, tmp_path, monkeypatch, capsys):
    """Return a function that runs the command for an image of its own, and returns the output."""
    monkeypatch.setattr(images, 'CONTAINER', tmp_path / 'container')
    monkeypatch.setattr(images, 'LOCKS', tmp_path)
    monkeypatch.setattr(images, 'image_uri', lambda kind: f'{NAME}:7.8.1-cpu-py313')
    (tmp_path / 'container').mkdir()
    dockerfile = f'ARG BASE={IMAGE}\nARG PROCESSOR\nFROM ${{BASE}}\nLABEL port={registry.port}\n'
    (tmp_path / 'container' / 'Dockerfile').write_text(dockerfile)

    def get_image(*words):
        main(['image', *words])
        return capsys.readouterr().out

    yield get_image
    for tag in docker(f'images --format {{{{.Tag}}}} {NAME}').split():
        docker(f'rmi {NAME}:{tag}')


def label(name):
    return docker(f'image inspect --format {{{{.Config.Labels.{name}}}}} {NAME}:7.8.1-cpu-py313').strip()


def write_lock(root, image, source):
    (root / 'images.lock').write_text(f'# a comment\ngpu {image}0 {source}\ncpu {image} {source}\n')


def test_the_published_image_is_taken_and_not_built(registry, get_image, tmp_path):
    source = images.source()
    image = registry.publish(source)
    write_lock(tmp_path, image, source)
    assert get_image() == f'image: pulling {image}\n'
    assert (label('published'), label('source')) == ('yes', source)
    assert get_image() == ''  # it is here
    # By the same digest, that of another architecture.
    other = 'amd64' if docker('version --format {{.Server.Arch}}').strip() == 'arm64' else 'arm64'
    get_image('--platform', f'linux/{other}')
    image = f'{NAME}:7.8.1-cpu-py313-{other}'
    assert docker(f'image inspect --format {{{{.Architecture}}}} {image}').strip() == other


def test_a_build_that_fails_shows_its_last_lines(get_image, tmp_path):
    dockerfile = tmp_path / 'container' / 'Dockerfile'
    write_lock(tmp_path, 'any', '1')
    dockerfile.write_text(dockerfile.read_text() + 'RUN echo so it is && false\n')
    with pytest.raises(SystemExit, match='so it is'):
        get_image()


def test_a_new_image_takes_the_formers_place(get_image, tmp_path):
    """Set-ups of many versions fill no disk; an image with a tag of the user's stays."""
    write_lock(tmp_path, 'any', '1')
    dockerfile, ids = tmp_path / 'container' / 'Dockerfile', []
    for i in range(3):
        get_image()
        ids += docker(f'images --quiet --no-trunc {NAME}:7.8.1-cpu-py313').split()
        if i == 1:
            docker(f'tag {NAME}:7.8.1-cpu-py313 {NAME}:kept')
        dockerfile.write_text(dockerfile.read_text() + f'LABEL i={i}\n')
    left = docker('images --quiet --no-trunc').split()
    assert [id in left for id in ids] == [False, True, True]


CASES = {
    'a digest that is not there': 'cannot pull it',
    'a tampered index': 'cannot pull it',
    'a tampered config': 'cannot pull it',
    'no registry': 'cannot pull it',
    'an image of another source': 'it is not of this container/',
    'a changed container/': None,
    'nothing published': None,
}


@pytest.mark.parametrize('case', CASES)
def test_else_it_is_built(registry, get_image, tmp_path, case):
    source = images.source()
    image = registry.publish('1' if case == 'an image of another source' else source)
    if case == 'a digest that is not there':
        image = image[:-64] + '0' * 64
    elif case == 'a tampered index':
        registry.tamper('annotations')
    elif case == 'a tampered config':
        registry.tamper('rootfs')
    elif case == 'no registry':
        image = image.replace(str(registry.port), str(free_port()))
    write_lock(tmp_path, image, '1' if case == 'a changed container/' else source)
    if case == 'nothing published':
        (tmp_path / 'images.lock').write_text('# a comment\n')
    said = get_image().splitlines()
    why = [f'image: pulling {image}', f'image: {CASES[case]}'] if CASES[case] else []
    assert said == why + [f'image: building {NAME}:7.8.1-cpu-py313']
    assert (label('port'), label('source')) == (str(registry.port), source)
