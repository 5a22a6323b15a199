import numpy as np
import pytest
import torch

from lddgan_kernels.data import load_digits, open_images


def test_whole_set_equals_scikit_learns():
    datasets = pytest.importorskip("sklearn.datasets")
    expected = datasets.load_digits()
    digits = load_digits()
    assert digits.images.shape == (1797, 1, 8, 8)
    pixels = np.rint(expected.images * 255 / 16).astype(np.uint8)
    assert np.array_equal(digits.images[:, 0].numpy(), pixels)
    assert np.array_equal(digits.labels.numpy(), expected.target)


def test_split_is_disjoint_whole_and_stratified():
    train, test, whole = load_digits("train"), load_digits("test"), load_digits()
    assert (len(train.labels), len(test.labels)) == (1442, 355)
    rows = torch.cat([train.images, test.images]).flatten(1)
    assert torch.equal(rows.unique(dim=0), whole.images.flatten(1).unique(dim=0))
    share = test.labels.bincount() / whole.labels.bincount()
    assert share.min() > 0.19
    assert share.max() < 0.21


def test_open_images_gives_the_training_split_enlarged():
    dataset = open_images(None, 32)
    train = load_digits("train", 32)
    assert dataset.name == "digits"
    assert len(dataset) == 1442
    assert torch.equal(dataset[5], train.images[5].expand(3, 32, 32))
    assert torch.equal(dataset.labels, train.labels)
    small = load_digits("train")
    back = torch.nn.functional.adaptive_avg_pool2d(train.images.float(), 8)
    assert (back - small.images.float()).abs().mean() < 16
    assert len(open_images(None, 16, channels=1, limit=10).labels) == 10


def test_bad_arguments():
    with pytest.raises(ValueError, match='load_digits: split must be "train", "test" or None'):
        load_digits("val")
    with pytest.raises(ValueError, match="load_digits: resolution must be at least 8, got 4"):
        load_digits(resolution=4)
