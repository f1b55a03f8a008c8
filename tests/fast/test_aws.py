"""The stand-in for AWS answers its own session only: no other user, session, service, host or page."""

import contextlib
import os
import socket
import subprocess
import sys
import time

import botocore.auth
import pytest
from botocore.awsrequest import AWSRequest
from botocore.exceptions import ClientError
from local_mode import aws
from local_mode.session import open_session
from support import http, run

MADE_UP = 'AWS4-HMAC-SHA256 Credential=AKIA/20260101/us-east-1/{}/aws4_request, SignedHeaders=host, Signature=00'
FORM = {'Content-Type': 'application/x-www-form-urlencoded'}
PAGE = {'Origin': 'http://evil.example', 'Sec-Fetch-Site': 'cross-site', 'Cookie': 'any=thing'}


@pytest.fixture(scope='module')
def url(session):
    return session.boto_session.endpoint_url


@pytest.fixture(scope='module')
def stored(session):
    """Store an object; return (client, bucket, key)."""
    client, bucket = session.boto_session.client('s3'), session.default_bucket()
    client.put_object(Bucket=bucket, Key='secret.txt', Body=b'secret')
    yield client, bucket, 'secret.txt'
    assert client.get_object(Bucket=bucket, Key='secret.txt')['Body'].read() == b'secret'  # after all attacks


def refused(method, url, **options):
    """Return whether a request is refused in our words, and no page may read that."""
    answer = http.request(method, url, redirect=False, **options)
    shared = [name for name in answer.headers if name.lower().startswith('access-control')]
    return answer.status == 403 and b"its own session's" in answer.data and not shared


@pytest.mark.parametrize('headers', [{}, PAGE, {'Host': 'evil.example'}, {'Host': 'localhost'}, FORM])
def test_who_does_not_know_the_secret_gets_nothing(url, stored, headers):
    _, bucket, key = stored
    for path in '/', f'/{bucket}', f'/{bucket}/{key}', '/favicon.ico':
        for method in 'GET', 'HEAD', 'PUT', 'DELETE', 'OPTIONS':
            answer = http.request(method, url + path, headers=headers)
            assert answer.status == 403 and 'Access-Control-Allow-Origin' not in answer.headers
    for path in '/moto-api/', '/moto-api/data.json', '/latest/meta-data/', '/latest/api/token', f'/{bucket}?acl':
        assert refused('GET', url + path, headers=headers)
    for path in '/moto-api/reset', '/moto-api/seed?a=1', '/', f'/{bucket}', f'/{bucket}?delete':
        assert refused('POST', url + path, headers=headers, body=b'Action=CreateRole&RoleName=any')


@pytest.mark.parametrize('service', ['s3', 'sts', 'iam', 'batch', 'lambda', 'ec2', 'moto_api', 'instance_metadata'])
def test_an_invented_signature_opens_no_service(url, stored, service):
    """Five calls with one let any user of the machine mount its directories: moto's Batch runs containers."""
    headers = {'Authorization': MADE_UP.format(service), 'X-Amz-Date': '20260101T000000Z'}
    for path in '/', '/v1/createcomputeenvironment', '/2015-03-31/functions', f'/{stored[1]}/{stored[2]}':
        assert refused('GET', url + path, headers=headers)
        assert refused('POST', url + path, headers=headers | FORM, body=b'Action=CreateRole&RoleName=any')


@pytest.mark.parametrize(
    'authorization', ['', 'x', 'AWS4-HMAC-SHA256', 'AWS AKIA:c2ln', MADE_UP[:-2], 'é' * 9, ',=/' * 99]
)
def test_a_broken_signature_is_refused(url, authorization):
    assert refused('GET', url, headers={'Authorization': authorization.encode(), 'X-Amz-Date': 'yesterday'})
    assert refused('GET', url + '/a/b?X-Amz-Signature=00&X-Amz-Credential=a/b/c/s3/aws4_request&X-Amz-Date=é')


@pytest.mark.parametrize('service, call', [
    ('batch', 'describe_job_queues'), ('lambda', 'list_functions'), ('ec2', 'describe_instances'),
    ('sqs', 'list_queues'), ('dynamodb', 'list_tables'), ('secretsmanager', 'list_secrets'),
])  # fmt: skip
def test_not_even_the_session_gets_another_service(session, service, call):
    with pytest.raises(ClientError, match='AccessDenied|403'):
        getattr(session.boto_session.client(service), call)()


def signed(session, url, method='GET', **headers):
    request = AWSRequest(method, url, headers)
    botocore.auth.S3SigV4Auth(session.boto_session.get_credentials(), 's3', 'us-east-1').add_auth(request)
    return dict(request.headers)


def test_a_signature_is_for_one_request_to_this_host(session, url, stored):
    path = '/{}/{}'.format(*stored[1:])
    headers = signed(session, url + path)
    assert http.request('GET', url + path, headers=headers).data == b'secret'
    assert refused('DELETE', url + path, headers=headers)
    assert refused('GET', url + path + 'x', headers=headers)
    assert refused('GET', url + path + '?acl', headers=headers)
    assert refused('GET', url + path, headers=headers | {'Authorization': headers['Authorization'][:-1]})
    port = url.rpartition(':')[2]
    for host in 'evil.example', 'localhost', '[::1]':  # a name that leads here: DNS rebinding
        headers = signed(session, f'http://{host}:{port}{path}') | {'Host': f'{host}:{port}'}
        assert refused('GET', url + path, headers=headers)


def test_no_answer_may_be_read_by_a_page(session, url, stored):
    client, bucket, key = stored
    rules = [{'AllowedMethods': ['GET'], 'AllowedOrigins': ['*'], 'AllowedHeaders': ['*']}]
    client.put_bucket_cors(Bucket=bucket, CORSConfiguration={'CORSRules': rules})
    path = f'{url}/{bucket}/{key}'
    answer = http.request('GET', path, headers=signed(session, path) | PAGE)
    assert answer.status == 200 and not [name for name in answer.headers if name.startswith('Access-Control')]
    client.delete_bucket_cors(Bucket=bucket)


def test_a_presigned_url_opens_what_it_names_until_it_expires(stored):
    client, bucket, key = stored
    link = client.generate_presigned_url('get_object', {'Bucket': bucket, 'Key': key}, ExpiresIn=60)
    assert http.request('GET', link).data == b'secret'
    for method, other in ('PUT', link), ('GET', link.replace(key, 'other')), ('GET', link.replace('=60', '=61')):
        assert refused(method, other)
    assert refused('GET', link.replace('127.0.0.1', 'localhost'))
    assert refused('GET', client.generate_presigned_url('get_object', {'Bucket': bucket, 'Key': key}, ExpiresIn=-1))
    token = link.partition('X-Amz-Security-Token=')[2].partition('&')[0]  # all that a link gives away
    assert refused('GET', link.partition('?')[0], headers={'X-Amz-Security-Token': token})
    put = client.generate_presigned_url('put_object', {'Bucket': bucket, 'Key': 'put'}, ExpiresIn=60)
    assert refused('PUT', put, headers={'X-Amz-Copy-Source': f'{bucket}/{key}'})
    assert http.request('PUT', put, body=b'by link').status == 200
    assert client.get_object(Bucket=bucket, Key='put')['Body'].read() == b'by link'


OPEN = """
from local_mode import aws
session, stop = aws.start()
print(session.endpoint_url, flush=True)
input()
stop()
"""


@pytest.mark.slow
def test_a_sessions_credentials_open_no_other_session(session, url):
    keys = session.boto_session.get_credentials()
    streams = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with (
        contextlib.closing(open_session(embedded=True)) as other,
        subprocess.Popen([sys.executable, '-c', OPEN], **streams) as process,
    ):
        theirs = other.boto_session.get_credentials()
        assert {theirs.access_key, theirs.secret_key}.isdisjoint([keys.access_key, keys.secret_key])
        for there in other.boto_session.endpoint_url, process.stdout.readline().strip():
            stranger = aws.RedirectedSession(there, keys.access_key, keys.secret_key, keys.token)
            for service, call in ('s3', 'list_buckets'), ('iam', 'list_roles'), ('sts', 'get_caller_identity'):
                with pytest.raises(ClientError, match='AccessDenied|403'):
                    getattr(stranger.client(service), call)()
        process.communicate('\n', timeout=60)
    assert session.boto_session.client('s3').list_buckets()['Buckets'] is not None  # this one goes on


@pytest.mark.parametrize('key', ['a b+c&d=e?f#g%20.txt', 'é/ü 手.npz', 'a//b/./c', "~!*'();:@,$", 'x' * 900])
def test_any_key_can_be_signed(stored, key):
    client, bucket, _ = stored
    client.put_object(Bucket=bucket, Key=key, Body=b'here', Metadata={'with_underscore': 'a  b', 'with-dash': 'c'})
    found = client.get_object(Bucket=bucket, Key=key)
    assert found['Body'].read() == b'here' and found['Metadata'] == {'with_underscore': 'a  b', 'with-dash': 'c'}
    assert [o['Key'] for o in client.list_objects_v2(Bucket=bucket, Prefix=key)['Contents']] == [key]
    client.delete_objects(Bucket=bucket, Delete={'Objects': [{'Key': key}]})


def test_large_files_go_up_and_down_in_parts(session, stored, tmp_path):
    client, bucket, _ = stored
    (tmp_path / 'large').write_bytes(os.urandom(20_000_000))
    client.upload_file(str(tmp_path / 'large'), bucket, 'large')
    session.boto_session.resource('s3').Bucket(bucket).download_file('large', str(tmp_path / 'again'))
    assert (tmp_path / 'again').read_bytes() == (tmp_path / 'large').read_bytes()
    client.delete_object(Bucket=bucket, Key='large')


@pytest.mark.skipif(os.getuid() != 0, reason='only root can be another user')
def test_another_user_of_the_machine_reads_nothing(session):
    own = session.in_own_directory().directory
    command = 'cat /proc/$0/environ; ls /proc/$0/cwd/ /proc/$0/fd/ "$@"; cat "$@"/*'
    another = dict(user=65534, group=65534, extra_groups=[])
    done = run('sh', '-c', command, os.getpid(), session.directory, own, **another)
    assert done.stdout == '' and done.stderr.count('Permission denied') >= 6
    done = run('/usr/bin/python3', '-c', CONNECT, session.boto_session.endpoint_url, **another)
    assert 'ConnectionResetError' in done.stderr or 'RemoteDisconnected' in done.stderr, done.stderr


CONNECT = 'import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=30).status)'


def test_a_strangers_request_costs_little(session, url, stored):
    """Before its signature is known to be wrong."""
    start = time.monotonic()
    assert refused('GET', url, headers={'Authorization': 'a' * 60_000, 'X-Amz-Date': '20260101T000000Z'})
    wrong = {'Authorization': 'AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/sts/x, SignedHeaders=host, Signature=a'}
    with socket.create_connection(url.removeprefix('http://').split(':')) as stranger:
        lines = [f'{name}: {value}' for name, value in (wrong | {'X-Amz-Date': '20260101T000000Z'}).items()]
        head = ['POST / HTTP/1.1', f'Host: {url.removeprefix("http://")}', *lines, 'Content-Length: -1', '', '']
        stranger.sendall('\r\n'.join(head).encode())
        assert b' 403 ' in stranger.recv(4096)  # and does not wait for the body's end
    assert time.monotonic() - start < 5


def test_a_presigned_url_opens_no_path_around_what_it_names(stored, url):
    client, bucket, _ = stored
    path = client.generate_presigned_url('put_object', {'Bucket': bucket, 'Key': 'put'}, ExpiresIn=60).removeprefix(url)
    host = url.removeprefix('http://')
    with socket.create_connection(host.split(':')) as stranger:
        stranger.sendall(f'PUT {bucket}{path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n'.encode())
        assert b' 403 ' in stranger.recv(4096)
