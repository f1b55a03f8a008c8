"""The session checks this machine, here without Docker."""

import contextlib
import io
import os
import re
import shlex
import socket
import sys
import tarfile
import tempfile
import types

import botocore.exceptions
import numpy as np
import pytest
import sagemaker
from local_mode import aws, clean, endpoints, image_uri, s3
from local_mode import session as session_module
from local_mode.engines import choose
from local_mode.engines.docker import Docker
from local_mode.engines.interface import Container
from local_mode.engines.processes import Processes
from local_mode.errors import EndpointError, EngineError, LocalModeError
from local_mode.transform import execution_parameters
from sagemaker.chainer.model import ChainerPredictor
from sagemaker.s3 import S3Downloader
from support import IMAGE, ROLE, ROOT, answers, free_port, make_estimator, pack, python


@pytest.fixture
def path(tmp_path, monkeypatch):
    """Set an empty PATH; return a function that puts a command on it."""
    directory = tmp_path / 'bin'
    directory.mkdir()
    monkeypatch.setenv('PATH', str(directory))

    def put(name, script):
        (directory / name).write_text('#!/bin/sh\n' + script)
        (directory / name).chmod(0o700)

    return put


def test_without_credentials_there_is_an_embedded_aws(capsys, tmp_path):
    with contextlib.closing(session_module.open_session()) as session:
        assert 'AWS: a stand-in on this machine' in capsys.readouterr().out
        assert sagemaker.get_execution_role(session) == ROLE
        (tmp_path / 'in').mkdir()
        (tmp_path / 'in' / 'file').write_text('text')
        uri = session.upload_data(str(tmp_path / 'in'), key_prefix='a/model/b')
        assert uri == 's3://sagemaker-us-east-1-123456789012/a/model/b'
        S3Downloader.download(uri, str(tmp_path / 'out'), sagemaker_session=session)
        assert (tmp_path / 'out' / 'file').read_text() == 'text'


def test_the_first_cell_can_be_run_again(session):
    with contextlib.closing(session_module.open_session(embedded=True)) as again:
        assert sagemaker.get_execution_role(again) == sagemaker.get_execution_role(session) == ROLE


def test_the_embedded_aws_listens_on_loopback_until_the_session_closes():
    session = session_module.open_session(embedded=True)
    port = int(session.boto_session.endpoint_url.rsplit(':', 1)[1])
    assert answers(port)
    with socket.socket() as s:  # every address of this machine but that one is still free
        s.bind(('127.0.0.2', port))
    assert os.path.isdir(session.directory)
    session.close()
    assert not answers(port) and not os.path.exists(session.directory)


@pytest.mark.slow
def test_what_belongs_to_a_closed_session_says_so(tmp_path):
    """So it is in a notebook whose first cell has run again, but not those that make estimator and predictor."""
    session = session_module.open_session(embedded=True)
    estimator, predictor = make_estimator(session), ChainerPredictor('an-endpoint', session)
    session.close()
    session.close()
    for use in estimator.fit, lambda: predictor.predict(np.zeros((1, 784), np.float32)):
        with pytest.raises(LocalModeError, match='This session is closed: make the estimator or predictor anew'):
            use()


def test_credentials_lead_to_the_users_account(monkeypatch, capsys):
    # A second embedded AWS plays the user's account; boto3 finds it as it would find the real one.
    account, stop = aws.start()
    monkeypatch.setattr(session_module.boto3, 'Session', lambda: account)
    monkeypatch.setattr(session_module.aws, 'start', lambda: pytest.fail('embedded AWS started'))
    with contextlib.closing(session_module.open_session()) as session:
        assert capsys.readouterr().out.startswith('AWS: your account 123456789012 in us-east-1')
        assert session.boto_session is account
    stop()


def test_credentials_without_a_region_are_explained(monkeypatch):
    monkeypatch.setenv('AWS_ACCESS_KEY_ID', 'a')
    monkeypatch.setenv('AWS_SECRET_ACCESS_KEY', 'b')
    with pytest.raises(ValueError, match='set AWS_DEFAULT_REGION'):
        session_module.open_session()


def test_no_docker_is_said_in_words(path):
    with pytest.raises(EngineError, match='Docker is not installed: .*get-docker.*setup.sh.*LOCAL_MODE=process'):
        Docker().check('sagemaker-chainer:x')


def test_an_engine_that_does_not_answer_is_said_in_words(path):
    path('docker', 'echo "Cannot connect to the Docker daemon" >&2; exit 1')
    with pytest.raises(EngineError, match='Docker does not answer: start it.*Cannot connect'):
        Docker().check('sagemaker-chainer:x')


def test_a_command_to_paste_works_where_paths_have_spaces(path, monkeypatch):
    path('docker', 'exit 0')
    monkeypatch.setattr(sys, 'executable', '/my project/bin/python')
    with pytest.raises(EngineError, match="build it:\n\n'/my project/bin/python' -m local_mode image\n"):
        Docker().check(IMAGE)


def test_a_missing_image_is_not_looked_up_among_strangers(path):
    path('docker', 'exit 0')
    command = re.escape(shlex.quote(sys.executable)) + ' -m local_mode image\n'
    with pytest.raises(EngineError, match=f'no image {IMAGE}: build it:\n\n{command}'):
        Docker().check(IMAGE)
    with pytest.raises(EngineError, match='no image python:3.13: .*docker.io/library/python:3.13'):
        Docker().check('python:3.13')
    Docker().check('docker.io/library/python:3.13')  # which says whom to ask


@pytest.mark.slow
def test_no_name_of_ours_is_on_the_path_and_importing_changes_no_path():
    code = 'import os; p = os.environ["PATH"]; import local_mode.session; print(p == os.environ["PATH"])'
    assert python('-c', code).stdout == 'True\n'
    assert not [path for path in (ROOT / 'local_mode').rglob('*') if path.name.startswith('docker') and not path.suffix]


@pytest.mark.parametrize('wanted, engine', [('docker', Docker), ('podman', Docker), ('process', Processes)])
def test_local_mode_names_the_engine(monkeypatch, wanted, engine):
    monkeypatch.setenv('LOCAL_MODE', wanted)
    chosen = choose.choose()
    assert isinstance(chosen, engine) and getattr(chosen, 'program', 'process') == wanted


def test_an_engine_that_there_is_not_is_said(monkeypatch):
    monkeypatch.setenv('LOCAL_MODE', 'dockr')
    with pytest.raises(EngineError, match="docker, podman or process, not 'dockr'"):
        choose.choose()


def test_without_docker_processes_are_taken_where_they_can_run(path, monkeypatch):
    monkeypatch.delenv('LOCAL_MODE')
    assert isinstance(choose.choose(), Processes)
    monkeypatch.setattr(choose, 'find_spec', lambda name: None)
    assert isinstance(choose.choose(), Docker)  # whose first command says how to get it


@pytest.mark.parametrize(
    'host, expected', [('unix:///var/run/docker.sock', '127.0.0.1'), ('tcp://10.1.2.3:2376', '10.1.2.3')]
)
def test_an_endpoint_is_asked_where_the_engine_is(path, monkeypatch, host, expected):
    monkeypatch.setenv('DOCKER_HOST', host)
    assert Docker().host == expected
    monkeypatch.delenv('DOCKER_HOST')
    path('docker', f'[ $1 = context ] && echo {host}')
    assert Docker().host == expected


def test_an_endpoint_takes_the_next_free_port_unless_the_session_has_one():
    with contextlib.closing(session_module.open_session(embedded=True)) as session, socket.socket() as other:
        session.engine.host = '127.0.0.1'  # which else asks Docker
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):  # it is taken already
            other.bind(('127.0.0.1', 8080))
            other.listen()
        endpoints.check_serving_port(session)
        assert 8080 < session.serving_port < 8180 and not answers(session.serving_port)
        assert session.config['local']['serving_port'] == session.serving_port
        session.set_serving_port(8080)
        session.engine.find = lambda *_, **__: []
        with pytest.raises(EndpointError, match='Port 8080 is taken by another program'):
            endpoints.check_serving_port(session)


@pytest.mark.parametrize('works', [True, False])
def test_clean_is_done_only_if_every_engine_was_cleaned(path, tmp_path, monkeypatch, capsys, works):
    path('docker', 'true' if works else 'echo no rights >&2; false')
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))  # others' sessions stay
    clean.clean()
    output = capsys.readouterr().out
    assert ('clean: done' in output, 'no rights' in output) == (works, not works)


def test_a_port_whose_server_accepts_nothing_is_taken():
    with socket.create_server(('127.0.0.1', 0), backlog=0) as server, contextlib.ExitStack() as stack:
        address = server.getsockname()
        assert not endpoints.is_free(*address)
        for _ in range(8):  # more than it lets wait
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(address)
        assert not endpoints.is_free(*address)
    assert endpoints.is_free(*address)


def test_the_users_settings_of_local_mode_stay(session):
    """Each job has the port of its beginning, whatever endpoint the session deploys next."""
    session.config = {'local': {'local_code': True, 'region_name': 'eu-west-1', 'container_config': {'shm_size': '1g'}}}
    session.set_serving_port(1234)
    own = session.in_own_directory()
    session.set_serving_port(1235)
    users = dict(local_code=True, region_name='eu-west-1', container_config={'shm_size': '1g'})
    assert session.config == {'local': dict(users, serving_port=1235, container_root=session.directory)}
    assert own.config == {'local': dict(users, serving_port=1234, container_root=own.directory)}
    assert own.sagemaker_runtime_client.port('') == 1234
    session.config = None
    session.set_serving_port(None)


def test_a_container_that_stops_before_it_recommends_anything_is_told():
    with pytest.raises(EndpointError, match='gave no JSON object at http://127.0.0.1:.*refused'):
        execution_parameters(f'http://127.0.0.1:{free_port()}/execution-parameters')


def test_secrets_and_odd_paths_pass_an_engines_command_line(path, tmp_path):
    """Values are not in it, as all users see it; mounts may have colons, commas, quotes and spaces."""
    path('docker', f'echo "$@" >> {tmp_path}/args; [ $1 = run ] && /bin/cat > {tmp_path}/stdin; echo id')
    odd = tmp_path / 'a:b,c "d" é'
    environment = {'SECRET': 'pass word=$1', 'LINES': 'one\ntwo'}
    container = Container('name', 'image', ['train'], environment=environment, mounts={'/opt/ml/x': str(odd)})
    Docker().run([container])
    assert (tmp_path / 'stdin').read_text() == 'SECRET=pass word=$1\n' and odd.is_dir()
    args = (tmp_path / 'args').read_text()
    quoted = str(odd).replace('"', '""')
    assert f'--mount=type=bind,"source={quoted}","target=/opt/ml/x"' in args and 'pass word' not in args


def test_a_gpu_counts_only_if_docker_can_use_it(path, capsys):
    assert not choose.gpu_available()  # no nvidia-smi at all
    path('nvidia-smi', 'exit 0')
    path('docker', 'case $1 in images) exit 0;; esac')
    assert not choose.gpu_available()
    assert 'There is no image sagemaker-chainer:7.8.1-gpu-py313' in capsys.readouterr().out
    path('docker', 'case $1 in images) echo id;; run) echo "no such driver" >&2; exit 1;; esac')
    assert not choose.gpu_available()
    assert 'NVIDIA Container Toolkit' in capsys.readouterr().out
    path('docker', 'case $1 in images) echo id;; esac')
    assert choose.gpu_available()
    path('nvidia-smi', 'exit 9')
    assert not choose.gpu_available()


@pytest.mark.parametrize(
    'instance_type, processor',
    [('local', 'cpu'), ('local_gpu', 'gpu'), ('ml.m5.xlarge', 'cpu'), ('ml.g5.xlarge', 'gpu')],
)
def test_the_image_fits_the_instance_type(instance_type, processor):
    assert image_uri(instance_type) == f'sagemaker-chainer:7.8.1-{processor}-py313'


def test_code_from_s3_is_unpacked_for_the_container(session, tmp_path):
    (tmp_path / 'script.py').write_text('pass')
    code = pack(tmp_path / 'sourcedir.tar.gz', tmp_path / 'script.py')
    uri = session.upload_data(code, key_prefix='job/source')
    copy = s3.local_copy(session, uri)
    assert copy.startswith('file://' + session.directory)
    assert os.listdir(copy[len('file://') :]) == ['script.py']
    assert s3.local_copy(session, 'file:///some/where') == 'file:///some/where'


def member(name, kind=tarfile.REGTYPE, linkname='', mode=0o644):
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.mode, member.uid = kind, linkname, mode, 12345
    return member


# A path that is too long to be resolved, but short to walk, by links: CVE-2025-4517.
NAMES = [chr(97 + i) for i in range(16)]
DEEP, LONG = [], ''
for name in NAMES:
    deep = '/'.join(NAMES[: NAMES.index(name)])
    DEEP.append(member(f'{deep}/{"d" * 247}'.lstrip('/'), tarfile.DIRTYPE, mode=0o755))
    DEEP.append(member(f'{deep}/{name}'.lstrip('/'), tarfile.SYMTYPE, 'd' * 247))
LONG = '/'.join(NAMES) + '/' + 'l' * 254 + '/'
DEEP.append(member(LONG.rstrip('/'), tarfile.SYMTYPE, '../' * 16))


@pytest.fixture(params=['data_filter', 'Python 3.11.2'])
def unpack(request, monkeypatch, tmp_path):
    """Return a function that unpacks members in `there`, with and without what Debian 12's Python lacks."""
    if request.param == 'Python 3.11.2':
        monkeypatch.delattr(tarfile, 'data_filter')
        monkeypatch.setattr(tarfile.TarFile, 'extraction_filter', staticmethod(lambda member, path: member))

    def unpack(*members):
        with tarfile.open(tmp_path / 'a.tar.gz', 'w:gz') as tar:
            for one in members:
                one.size = len(b'content') * one.isreg()
                tar.addfile(one, io.BytesIO(b'content'))
        (tmp_path / 'there').mkdir()
        s3.unpack(tmp_path / 'a.tar.gz', tmp_path / 'there')
        return tmp_path / 'there'

    return unpack


@pytest.mark.parametrize(
    'members',
    [
        [member('../out')],
        [member('{out}')],
        [member('a/../../out')],
        [member('a', tarfile.SYMTYPE, '../out'), member('a')],
        [member('a', tarfile.SYMTYPE, '{out}'), member('a')],
        [member('a', tarfile.SYMTYPE, '..'), member('a/out')],
        [member('a', tarfile.SYMTYPE, 'b/../../out'), member('b', tarfile.SYMTYPE, '.'), member('a')],
        [member('a', tarfile.SYMTYPE, 'b/../out'), member('b', tarfile.SYMTYPE, '.'), member('a')],
        [member('a/b', tarfile.SYMTYPE, '..'), member('c', tarfile.SYMTYPE, 'a/b/..'), member('c/out')],
        [member('a', tarfile.LNKTYPE, '../secret'), member('a')],
        [member('a', tarfile.LNKTYPE, '{secret}'), member('a')],
        [member('a', tarfile.SYMTYPE, '../secret')],
        [member('a', tarfile.FIFOTYPE)],
        [*DEEP, member(LONG + '../../../out')],
        [*DEEP, member(LONG + 'esc', tarfile.SYMTYPE, '..'), member(LONG + 'esc/out')],
        [member('a', tarfile.CHRTYPE)],
    ],
    ids=lambda members: ', '.join(f'{one.name[-9:]} {one.linkname[-9:]}' for one in members),
)
def test_nothing_gets_out_of_a_directory_by_a_tar_file(unpack, members, tmp_path):
    secret, out = tmp_path / 'secret', tmp_path / 'out'
    secret.write_text('secret')
    names = dict(out=out, secret=secret)
    with contextlib.suppress(tarfile.TarError):
        unpack(*(member(one.name.format(**names), one.type, one.linkname.format(**names)) for one in members))
    assert not out.exists() and secret.read_text() == 'secret' and secret.stat().st_nlink == 1
    for path in (tmp_path / 'there').rglob('*'):
        assert path.resolve().is_relative_to(tmp_path / 'there') and (path.is_file() or path.is_dir())


def test_what_a_model_may_hold_is_unpacked(unpack):
    there = unpack(
        member('a', tarfile.DIRTYPE, mode=0o755),
        member('a/b', mode=0o6777),
        member('link', tarfile.SYMTYPE, 'a/b'),
        member('a/link', tarfile.SYMTYPE, '../a/b'),
        member('hard', tarfile.LNKTYPE, 'a/b', mode=0o6777),
    )
    for name in 'a/b', 'link', 'a/link', 'hard':
        assert (there / name).read_text() == 'content'
    status = (there / 'a' / 'b').stat()
    assert oct(status.st_mode) == '0o100755' and status.st_uid == os.getuid()


def test_an_endpoint_that_never_answers_is_given_up(session, monkeypatch):
    monkeypatch.setattr(endpoints.RuntimeClient, 'timeout', 0.5)
    session.engine.host = '127.0.0.1'  # which else asks Docker
    with socket.socket() as silent:
        silent.bind(('127.0.0.1', 0))
        silent.listen()
        mine = types.SimpleNamespace(port=silent.getsockname()[1])
        monkeypatch.setattr(session.sagemaker_client, 'running', lambda name: mine)
        client = endpoints.RuntimeClient(session)
        with pytest.raises(botocore.exceptions.ClientError, match=r'ModelError.*did not answer within 0.5 s'):
            client.invoke_endpoint(b'[]', 'mine')


CALLS = """
from local_mode.session import open_session
session = open_session(embedded=True)
print(session.account_id())
uri = session.upload_data('README.md', key_prefix='a')
assert session.read_s3_file(uri.split('/')[2], 'a/README.md').startswith('# MNIST')
session.close()
"""


@pytest.mark.slow
def test_nothing_is_sent_to_aws_with_credentials_present():
    """A script with credentials uses the embedded AWS; calls to the real AWS would arrive at this server."""
    with socket.socket() as aws:
        aws.bind(('127.0.0.1', 0))
        aws.listen()
        account = {
            'AWS_ACCESS_KEY_ID': 'AKIAIOSFODNN7EXAMPLE',
            'AWS_SECRET_ACCESS_KEY': 'secret',
            'AWS_DEFAULT_REGION': 'eu-central-1',
            'AWS_ENDPOINT_URL': f'http://127.0.0.1:{aws.getsockname()[1]}',
        }
        done = python('-c', CALLS, env=os.environ | account)
        assert done.returncode == 0 and '123456789012' in done.stdout, done.stderr
        aws.settimeout(0)
        with pytest.raises(BlockingIOError):
            aws.accept()
