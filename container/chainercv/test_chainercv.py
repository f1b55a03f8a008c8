"""The patches of ChainerCV: each test has a patch's name, and fails without it."""

import importlib
import pkgutil
import warnings

import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # of strings with backslashes
    import chainercv
    from chainercv.experimental.links.model.fcis.utils.proposal_target_creator import ProposalTargetCreator
    from chainercv.links.model.ssd import VGG16Extractor300
    from chainercv.utils import download, non_maximum_suppression
    from chainercv.utils.bbox.non_maximum_suppression import _nms_gpu_post


@pytest.mark.slow
def test_01_no_pkg_resources(monkeypatch, tmp_path, capsys):
    assert chainercv.__version__ == '0.13.1+numpy2'
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for module in pkgutil.walk_packages(chainercv.__path__, 'chainercv.'):
            if 'testing' not in module.name:  # it has markers of its own for pytest
                importlib.import_module(module.name)
    monkeypatch.setenv('CHAINER_DATASET_ROOT', str(tmp_path / 'cache'))
    for report in 'on', 'off':
        monkeypatch.setenv('CHAINERCV_DOWNLOAD_REPORT', report)
        (tmp_path / report).write_text('a')
        download.cached_download((tmp_path / report).as_uri())
        assert ('Downloading' in capsys.readouterr().out) == (report == 'on')


def test_02_nms():
    """The part of non-maximum suppression that follows the GPU's kernel gives the same as that of the CPU."""
    random = np.random.RandomState(0)
    corner = random.uniform(0, 40, (150, 2))
    boxes = np.hstack([corner, corner + random.uniform(5, 30, (150, 2))]).astype(np.float32)
    top, low = (f(boxes[:, None, s], boxes[None, :, s]) for f, s in ((np.maximum, slice(2)), (np.minimum, slice(2, 4))))
    shared = np.prod(low - top, axis=2) * (top < low).all(axis=2)
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    overlaps = np.triu(shared / (area[:, None] + area - shared) >= 0.5, 1)
    mask = np.zeros((150, 3), np.uint64)  # a bit for each box that a box suppresses, as the kernel writes it
    for i, j in np.argwhere(overlaps):
        mask[i, j // 64] |= np.uint64(1 << int(j) % 64)
    selection, n = _nms_gpu_post(mask.ravel(), 150, 64, 3)
    assert 0 < n < 150 and selection.tolist() == non_maximum_suppression(boxes, 0.5).tolist()


def test_03_numpy_int():
    creator = ProposalTargetCreator(n_sample=4)
    mask = np.zeros((1, 60, 60), bool)
    mask[0, 5:40, 5:40] = True
    boxes = np.array([[4, 4, 41, 41], [0, 0, 10, 10], [30, 30, 59, 59]], np.float32)
    made = creator(boxes, mask, np.array([1], np.int32), boxes[:1], mask_size=21)
    assert set(np.unique(made[1])) <= {-1, 0, 1}


@pytest.mark.slow
def test_a_detector_predicts():
    images = [np.random.RandomState(0).uniform(0, 255, (3, 40, 50)).astype(np.float32)]
    model = chainercv.links.SSD300(n_fg_class=2)
    assert isinstance(model.extractor, VGG16Extractor300)
    boxes, labels, scores = (found[0] for found in model.predict(images))
    assert len(boxes) == len(labels) == len(scores)
