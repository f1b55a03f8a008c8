"""Files that `docker run … train` and `serve` write belong to the owner of the mounted directory."""

import json

import numpy as np
from support import IMAGE, JSON, docker, post, serve

OWNER, UID, GID = '12345:23456', 12345, 23456


def test_by_hand_as_an_unprivileged_owner(small_mnist, opt_ml):
    root = opt_ml(small_mnist, owner=OWNER, epochs='1', batch_size='100')
    docker(f'run --rm --hostname algo-1 -v {root}:/opt/ml {IMAGE} train')
    written = [root / name for name in ('model/model.npz', 'output/data/accuracy.png', 'output/success')]
    assert {(path.stat().st_uid, path.stat().st_gid) for path in written} == {(UID, GID)}
    assert {path.stat().st_uid for path in root.rglob('*')} == {UID}

    with serve(f'-v {root}:/opt/ml') as (name, url):
        users = docker(f'top {name} -eo pid,uid,cmd').splitlines()[1:]
        assert users and all(line.split()[1] == str(UID) for line in users)
        response = post(url, json.dumps([0.0] * 784), JSON, JSON)
        assert response.status == 200 and np.shape(response.json()) == (1, 10)


def test_a_directory_that_docker_made_becomes_the_owners(small_mnist, opt_ml):
    """Docker creates the model's directory as root when it mounts it, as the SDK does not create it."""
    root = opt_ml(small_mnist, owner=OWNER, epochs='1', batch_size='1000')
    (root / 'model').rmdir()
    directories = 'input', 'output', 'output/data', 'model', 'code'
    mounts = ' '.join(f'-v {root}/{directory}:/opt/ml/{directory}' for directory in directories)
    docker(f'run --rm --hostname algo-1 {mounts} {IMAGE} train')
    assert {path.stat().st_uid for path in root.rglob('*')} == {UID}
