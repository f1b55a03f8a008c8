"""Several hosts and processes get their settings, log in to each other, end together and resume."""

import ast
import contextlib
import re
import time

import numpy as np
import pytest
from support import (
    DISTRIBUTED,
    IMAGE,
    LABEL,
    container,
    containers,
    docker,
    free_port,
    load,
    make_estimator,
    output,
    run,
    wait_for,
)

OWNER = '12345:23456'
WHO = """
import os, socket
from mpi4py.MPI import COMM_WORLD as comm

if __name__ == '__main__':
    address = socket.gethostbyname(socket.gethostname())
    print('WHO', comm.gather((address, os.environ['GREETING'], os.environ['MINE'])))
"""


def test_each_host_gets_its_slots_the_mpi_options_and_the_environment(session, inputs, tmp_path, capfd):
    (tmp_path / 'who.py').write_text(WHO)
    options = dict(instance_count=2, process_slots_per_host=2, environment={'MINE': 'my own'})
    options['additional_mpi_options'] = '-x GREETING=hello'
    make_estimator(session, tmp_path / 'who.py', options).fit(inputs)
    ranks = ast.literal_eval(re.search(r'WHO (\[\(.*)', capfd.readouterr().out)[1].strip())
    assert [rank[1:] for rank in ranks] == 4 * [('hello', 'my own')]
    assert ranks[0] == ranks[1] != ranks[2] == ranks[3]


CRASHES = """
import os, sys, time
import chainermn

if __name__ == '__main__':
    comm = chainermn.create_communicator('naive')
    assert comm.size == 2
    if comm.rank == 0:
        with open(os.path.join(os.environ['SM_OUTPUT_DATA_DIR'], 'partial'), 'w') as f:
            f.write('so far')
    comm.mpi_comm.Barrier()
    if comm.rank == int(sys.argv[sys.argv.index('--crash') + 1]):
        raise ValueError('rank {} crashed'.format(comm.rank))
    time.sleep(300)
"""


@pytest.mark.parametrize('rank', [0, 1])
def test_a_crash_on_any_rank_ends_the_job(session, inputs, tmp_path, rank):
    (tmp_path / 'crashes.py').write_text(CRASHES)
    estimator = make_estimator(session, tmp_path / 'crashes.py', dict(instance_count=2), crash=rank)
    start = time.monotonic()
    traceback = f'1,{rank}.*Traceback .*File "crashes.py", line 13.*ValueError: rank {rank} crashed'
    with pytest.raises(RuntimeError, match='(?s)failed.*' + traceback):
        estimator.fit(inputs)
    assert time.monotonic() - start < 60
    assert containers(session, 'exited', 'created') == []
    with output(estimator) as tar:
        assert tar.extractfile('data/partial').read() == b'so far'


def test_more_processes_than_slots_are_refused(session, inputs):
    """Three hosts, which on two CPUs have 0.67 each."""
    with pytest.raises(RuntimeError, match='num_processes=4 do not fit on 3 host'):
        make_estimator(session, DISTRIBUTED, dict(instance_count=3, num_processes=4)).fit(inputs)


WAITS = 'import time, pathlib\nwhile not pathlib.Path("/opt/ml/output/go").exists(): time.sleep(0.1)\n'
LOGIN = """
import os
from sagemaker_chainer_container import mpi
os.makedirs("/tmp/home", exist_ok=True)
mpi.prepare_ssh()
os.execvp("ssh", "ssh -o BatchMode=yes sagemaker@algo-2 echo inside".split())
"""
SECRET = '--env SAGEMAKER_MPI_SECRET'


def test_two_hosts_by_hand_as_an_unprivileged_owner(small_mnist, opt_ml):
    """sshd and the processes that it starts run as the owner; another job's key cannot log in."""
    hosts = 'algo-1', 'algo-2'
    network = docker(f'network create --label {LABEL} by-hand-{free_port()}').strip()
    with contextlib.ExitStack() as stack:
        stack.callback(docker, f'network rm {network}')
        roots, names = [], []
        for host in hosts:
            program = dict(sagemaker_program=DISTRIBUTED.name, epochs='1', batch_size='100')
            root = opt_ml(small_mnist, OWNER, host, hosts, name=host, **program)
            (root / 'code' / DISTRIBUTED.name).write_text(WAITS + DISTRIBUTED.read_text())
            options = f'--network {network} --network-alias {host} --hostname {host} -v {root}:/opt/ml'
            names.append(stack.enter_context(container(f'{options} {SECRET}=shared', 'train')))
            roots.append(root)
        users, logins, deadline = set(), {}, time.monotonic() + 60
        while 'true' in docker('inspect --format {{.State.Running}}', *names):
            assert time.monotonic() < deadline, docker(f'logs {names[0]}')
            with contextlib.suppress(RuntimeError):  # gone in the meantime
                lines = docker(f'top {names[1]} -eo pid,uid,comm').splitlines()[1:]
                users |= {tuple(line.split()[1:]) for line in lines}
            if not logins and ('12345', 'orted') in users:
                for secret in 'shared', 'another':
                    command = f'docker run --rm --network {network} {SECRET}={secret} {IMAGE} python -c'
                    logins[secret] = run(*command.split(), LOGIN)
                for root in roots:
                    (root / 'output' / 'go').touch()
        assert docker('wait', *names).split() == ['0', '0'], docker(f'logs {names[0]}')
        assert {uid for uid, name in users if name in ('sshd', 'orted', 'train', 'python3')} == {'12345'}
        assert {'sshd', 'orted'} <= {name for _, name in users}
        assert logins['shared'].stdout == 'inside\n', logins['shared'].stderr
        assert logins['another'].stdout == ''
        assert 'Host key verification failed' in logins['another'].stderr
        assert (roots[0] / 'model' / 'model.npz').stat().st_uid == 12345
        assert ', 2 processes' in docker(f'logs {names[0]}')


def test_two_processes_resume_where_they_were_killed(small_mnist, opt_ml, tmp_path):
    """Two killed and restarted processes in one container end with the weights of uninterrupted ones."""
    program = dict(sagemaker_program=DISTRIBUTED.name, sagemaker_use_mpi='true', epochs='4', batch_size='100')
    program['sagemaker_process_slots_per_host'] = '2'
    for name in 'whole', 'killed':
        opt_ml(small_mnist, owner=OWNER, name=name, **program)

    def train(name, kill_after=None):
        """Train to the end, or kill the job when an epoch's checkpoints exist; return its output."""
        checkpoints = tmp_path / f'checkpoints-{name}'
        mounts = f'-v {tmp_path / name}:/opt/ml -v {checkpoints}:/opt/ml/checkpoints'
        with container(f'--hostname algo-1 {SECRET}=shared {mounts}', 'train') as job:

            def ended():
                if 'true' not in docker(f'inspect --format {{{{.State.Running}}}} {job}'):
                    return True
                if kill_after and (checkpoints / kill_after).exists():
                    docker(f'kill {job}')

            wait_for(ended, 90, lambda: docker(f'logs {job}'))
            return docker(f'logs {job}')

    train('whole')
    train('killed', kill_after='epoch_2_process_1_of_2.npz')
    assert not (tmp_path / 'killed' / 'model' / 'model.npz').exists()
    assert re.search(r'Resuming after epoch \d', train('killed'))
    np.testing.assert_equal(*(load(tmp_path / name / 'model' / 'model.npz') for name in ('whole', 'killed')))
