"""The real container trains the script through the SDK, on one host and on several."""

import contextlib
import io
import json
import logging
import pathlib
import tarfile

import pytest
from local_mode import aws, clients
from local_mode import session as session_module
from support import DISTRIBUTED, containers, make_estimator, output


def test_training_brings_back_model_and_output(estimator):
    assert estimator.model_data.endswith('/output/model.tar.gz')
    with output(estimator) as tar:
        written = {'accuracy.png', 'loss.png', 'cg.dot', 'log', 'snapshot_epoch_2'}
        assert {'success', *(f'data/{name}' for name in written)} <= set(tar.getnames())
        log = json.load(tar.extractfile('data/log'))
    assert log[-1]['iteration'] == 40  # 2 epochs of 2,000 images: the batch size of 100 arrived
    assert log[-1]['validation/main/accuracy'] > 0.8


def test_a_finished_job_leaves_no_container_and_no_copy_of_the_data(session, estimator):
    assert containers(session, 'exited', 'created') == []
    assert not list(pathlib.Path(session.directory).rglob('train.npz'))


FAILS = """
import os, sys
for name in "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN":
    assert os.environ[name]
open(os.environ["SM_MODEL_DIR"] + "/model", "w").write("a model")
sys.exit("failed at last")
"""


def test_credentials_reach_no_log_no_artifact_and_no_error(
    monkeypatch, tmp_path, capfd, caplog, wrapped_docker
):
    """The credentials, which the SDK passes to containers, and the hosts' secret appear in none of these."""
    account, stop = aws.start()
    monkeypatch.setattr(session_module.boto3, 'Session', lambda: account)
    monkeypatch.setattr(clients.secrets, 'token_hex', lambda *_: 'what the hosts share')
    caplog.set_level(logging.INFO, 'sagemaker.local')
    wrapped_docker('echo "$@" >> $here/commands')  # which every user of the machine sees
    (tmp_path / 'script.py').write_text(FAILS)
    with contextlib.closing(session_module.open_session()) as session:
        options = dict(instance_count=2, container_log_level=logging.DEBUG)
        estimator = make_estimator(session, tmp_path / 'script.py', options)
        with pytest.raises(RuntimeError, match='failed at last') as error:
            estimator.fit()
        kept = []
        for file in account.resource('s3').Bucket(session.default_bucket()).objects.all():
            if estimator._current_job_name in file.key:
                with tarfile.open(fileobj=io.BytesIO(file.get()['Body'].read())) as tar:
                    kept += [tar.extractfile(member).read() for member in tar if member.isfile()]
        out, err = capfd.readouterr()
        texts = [
            str(error.value),
            out,
            err,
            caplog.text,
            (tmp_path / 'commands').read_text(),
            *(data.decode('latin-1') for data in kept),
        ]
        assert 'a model' in texts and 'SM_MODEL_DIR' in out  # or this shows nothing
        assert 'run --detach' in (tmp_path / 'commands').read_text()
        credentials = account.get_credentials()
        for secret in credentials.secret_key, credentials.token, 'what the hosts share':
            assert not [text for text in texts if secret in text]
    stop()


def test_an_unknown_hyperparameter_and_a_missing_channel_are_reported(session, inputs):
    with pytest.raises(RuntimeError, match='unknown hyperparameter --batchsize'):
        make_estimator(session, batchsize=128).fit(inputs)
    with pytest.raises(RuntimeError, match="no 'test' channel"):
        make_estimator(session, epochs=1).fit({'train': inputs['train']})


@pytest.mark.parametrize(
    'options',
    [
        dict(instance_count=2),
        dict(instance_count=2, use_mpi=True, num_processes=4, process_slots_per_host=2),
        dict(use_mpi=True, num_processes=2, process_slots_per_host=2),
    ],
    ids=['two_hosts', 'two_processes_each', 'one_host'],
)
def test_several_processes_train_as_one_does(session, inputs, estimator, capfd, options):
    """Any number of hosts takes the same number of steps, and reaches the same accuracy."""
    together = make_estimator(session, DISTRIBUTED, options, epochs=2, batch_size=100)
    together.fit(inputs)
    assert f'2 epochs, {options.get("num_processes", 2)} processes' in capfd.readouterr().out
    with output(together) as tar, output(estimator) as alone:
        log, one = (json.load(t.extractfile('data/log')) for t in (tar, alone))
    assert log[-1]['iteration'] == one[-1]['iteration'] == 40
    assert abs(log[-1]['validation/main/accuracy'] - one[-1]['validation/main/accuracy']) < 0.02
    assert containers(session, 'exited', 'created') == []
