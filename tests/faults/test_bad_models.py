"""If a model cannot be served, the container stops and deploy gives the reason."""

import time

import numpy as np
import pytest
from support import load, make_model, pack

REASONS = {
    'missing': 'No such file',
    'truncated': 'not a zip file|EOF|truncated',
    'foreign': 'KeyError|is not a file in the archive',
    'NaN': 'NaN or infinity',
}


@pytest.mark.parametrize('kind', REASONS)
def test_a_bad_model_stops_the_container_and_deploy_says_why(trained, session, tmp_path, kind):
    path, arrays = tmp_path / 'model.npz', load(trained / 'model.npz')
    if kind == 'truncated':
        data = (trained / 'model.npz').read_bytes()
        path.write_bytes(data[: len(data) // 2])
    elif kind == 'foreign':
        np.savez(path, weights=np.zeros(3))
    elif kind == 'NaN':
        np.savez(path, **{name: np.full_like(array, np.nan) for name, array in arrays.items()})
    (tmp_path / 'README').write_text('There may be more in it.')
    model_data = pack(tmp_path / 'model.tar.gz', *tmp_path.glob('model.npz'), tmp_path / 'README')
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=f'(?s)The endpoint stopped.*({REASONS[kind]})'):
        make_model(session, model_data).deploy(1, 'local')
    assert time.monotonic() - start < 20
