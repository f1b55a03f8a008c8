"""Data sources arrive as files under the names that SageMaker gives them; requests are checked as its API does."""

import json
import os
import pathlib

import pytest
from botocore.exceptions import ClientError
from local_mode import LocalModeError, open_session
from local_mode.s3 import fetch
from local_mode.validation import check

KEYS = 'data/train-data.csv', 'data/train/in.csv', 'data/train/sub/in.csv', 'data/f1.txt', 'data/folder/'


@pytest.fixture(scope='module')
def session():
    session = open_session(embedded=True)
    session.s3_client.create_bucket(Bucket='bucket')
    for key in KEYS:
        session.s3_client.put_object(Bucket='bucket', Key=key, Body=key.encode())
    yield session
    session.close()


def names(directory):
    return {str(path.relative_to(directory)) for path in pathlib.Path(directory).rglob('*') if path.is_file()}


@pytest.mark.parametrize(
    'prefix, expected',
    [
        ('data/train', {'train-data.csv', 'in.csv', 'sub/in.csv'}),
        ('data/train/', {'in.csv', 'sub/in.csv'}),
        ('data/train/in.csv', {'in.csv'}),
        ('data/f', {'f1.txt'}),
        ('data', {'train-data.csv', 'train/in.csv', 'train/sub/in.csv', 'f1.txt'}),
        ('', {key for key in KEYS if not key.endswith('/')}),
    ],
)
def test_a_prefix_stands_for_all_keys_that_begin_with_it(session, prefix, expected):
    directory = fetch(session, f's3://bucket/{prefix}')
    assert names(directory) == expected
    assert all(pathlib.Path(directory, name).read_text().endswith(name) for name in expected)


def manifest(session, content):
    session.s3_client.put_object(Bucket='bucket', Key='a.manifest', Body=json.dumps(content))
    return fetch(session, 's3://bucket/a.manifest', 'ManifestFile')


def test_a_manifest_stands_for_the_objects_that_it_names(session):
    directory = manifest(session, [{'prefix': 's3://bucket/data/'}, 'f1.txt', 'train/in.csv'])
    assert names(directory) == {'f1.txt', 'train/in.csv'}


@pytest.mark.parametrize('content', [{}, [], [{'prefix': 1}, 'a'], ['s3://bucket/data/f1.txt'], 'text'])
def test_what_is_no_manifest_is_said(session, content):
    with pytest.raises(LocalModeError, match=r's3://bucket/a.manifest is no manifest'):
        manifest(session, content)


@pytest.mark.parametrize(
    'uri, kind, why',
    [
        ('s3://bucket/nothing', 'S3Prefix', 'No S3 objects found under S3 URL "s3://bucket/nothing"'),
        ('s3://missing/a', 'S3Prefix', 's3://missing/a cannot be read: .*NoSuchBucket'),
        ('s3://bucket/none.manifest', 'ManifestFile', 's3://bucket/none.manifest cannot be read'),
        ('s3://bucket/data', 'AugmentedManifestFile', 'Local mode has no AugmentedManifestFile'),
        ('file:///a.manifest', 'ManifestFile', 'Local mode has no ManifestFile at file://'),
        ('file:///no/such/thing', 'S3Prefix', 'There is no file or directory /no/such/thing'),
    ],
)
def test_what_is_not_there_is_named(session, uri, kind, why):
    with pytest.raises(LocalModeError, match=why):
        fetch(session, uri, kind)


def test_a_manifest_names_the_object_that_is_missing(session):
    with pytest.raises(LocalModeError, match='s3://bucket/data/none cannot be read'):
        manifest(session, [{'prefix': 's3://bucket/data/'}, 'none'])


@pytest.mark.parametrize('keys', [('c/d/d1', 'c/d1'), ('c/x', 'c/x/y')])
def test_objects_that_cannot_lie_side_by_side_are_named(session, keys):
    for key in keys:
        session.s3_client.put_object(Bucket='bucket', Key=key, Body=b'')
    with pytest.raises(LocalModeError, match='The object s3://bucket/c/.* has the name of another one'):
        fetch(session, 's3://bucket/c/d' if 'c/d1' in keys else 's3://bucket/c')
    for key in keys:
        session.s3_client.delete_object(Bucket='bucket', Key=key)


def test_an_object_comes_without_others_that_begin_like_it(session):
    for key in 'm/model.tar.gz', 'm/model.tar.gz.old':
        session.s3_client.put_object(Bucket='bucket', Key=key, Body=b'')
    assert names(fetch(session, 's3://bucket/m/model.tar.gz', 'S3Object')) == {'model.tar.gz'}
    assert names(fetch(session, 's3://bucket/m', 'S3Object')) == {'model.tar.gz', 'model.tar.gz.old'}


def test_no_key_leads_out_of_its_channel(session):
    session.s3_client.put_object(Bucket='bucket', Key='evil/../../out', Body=b'')
    with pytest.raises(LocalModeError, match='outside of its channel'):
        fetch(session, 's3://bucket/evil')
    session.s3_client.delete_object(Bucket='bucket', Key='evil/../../out')


@pytest.mark.parametrize('name', ['plain', 'my data', 'é', 'a:b', '100%20'])
def test_a_directory_of_this_machine_is_found_by_path_and_by_uri(session, tmp_path, name):
    directory = tmp_path / name
    directory.mkdir()
    (directory / 'f1.txt').write_text('one')
    (directory / 'f2.txt').write_text('two')
    for uri in f'file://{directory}', directory.as_uri():
        assert fetch(session, uri) == str(directory)
    assert os.listdir(fetch(session, (directory / 'f1.txt').as_uri())) == ['f1.txt']


def training_job(**request):
    check('CreateTrainingJob', {'TrainingJobName': 'a-1', **request})


def test_requests_that_aws_takes_are_taken():
    training_job(OutputDataConfig={'S3OutputPath': ''}, RoleArn='any')
    training_job(TrainingJobName='a_step-1795789879-da43')  # of a local pipeline of the SDK
    where = {'S3OutputPath': 'file:///my data'}
    training_job(
        HyperParameters={'a': 'x' * 2500}, OutputDataConfig=where, ResourceConfig={'InstanceType': 'local_gpu'}
    )


@pytest.mark.parametrize(
    'request_, why',
    [
        ({'TrainingJobName': 'my job'}, "Value 'my job' at 'trainingJobName' .*regular expression pattern"),
        ({'TrainingJobName': 'a' * 64}, 'length less than or equal to 63'),
        ({'InputDataConfig': [{'ChannelName': 'my chan'}]}, "'my chan' at 'inputDataConfig.1.member.channelName'"),
        ({'HyperParameters': {'a': 'x' * 2501}}, "'hyperParameters.a' .*less than or equal to 2500"),
        ({'Environment': {'A': None}}, "'environment.A' .*must be a string"),
        ({'Environment': {'A': 1}}, "'1' at 'environment.A' .*must be a string"),
        ({'HyperParameters': dict.fromkeys(map(str, range(101)), '')}, 'less than or equal to 100'),
        ({'StoppingCondition': {'MaxRuntimeInSeconds': 0}}, 'have value greater than or equal to 1'),
    ],
)
def test_requests_that_aws_refuses_are_refused(request_, why):
    with pytest.raises(ClientError, match=f'ValidationException.*CreateTrainingJob.*{why}'):
        training_job(**request_)
