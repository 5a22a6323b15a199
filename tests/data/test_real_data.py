"""Real photographs, where they are at hand."""

import numpy as np
import torch
from PIL import Image

from lddgan_kernels.data import cache_pixels, image_batches, open_images
from tests.conftest import shared_path


def test_cifar10_mosaic_as_npz(tmp_path):
    """A mosaic of 100x100 tiles becomes the `.npz` that `--data` takes."""
    mosaic = Image.open(shared_path("data/cifar10/cifar10_data_batch_1.webp")).convert("RGB")
    labels = np.load(shared_path("data/cifar10/cifar10_data_batch_1_labels.npy"))
    tiles = np.asarray(mosaic).reshape(100, 32, 100, 32, 3).transpose(0, 2, 1, 3, 4)
    np.savez(tmp_path / "cifar10.npz", x=tiles.reshape(-1, 32, 32, 3), y=labels)
    dataset = cache_pixels(open_images(tmp_path / "cifar10.npz", 32))
    assert len(dataset) == 10_000
    assert torch.equal(dataset[101], torch.from_numpy(tiles[1, 1].copy()).permute(2, 0, 1))
    # Ten balanced classes of natural images: the set's well-known channel means.
    means = dataset.images.float().mean((0, 2, 3)) / 255
    torch.testing.assert_close(means, torch.tensor([0.491, 0.482, 0.447]), atol=0.01, rtol=0)
    assert dataset.labels.bincount().min() > 900


def test_zip_of_photographs():
    dataset = open_images(shared_path("data/houses256/train.zip"), 256, limit=40)
    batch = next(image_batches(dataset, 8, 0, 0, flip=True, workers=2))
    assert batch.shape == (8, 3, 256, 256)
    assert dataset.skipped == []
    # JPEG scaling inside the decoder must not change the picture: compare with a plain resize.
    small = open_images(shared_path("data/houses256/train.zip"), 64, limit=1)[0].float()
    plain = torch.nn.functional.interpolate(
        dataset[0][None].float(), (64, 64), mode="bicubic", antialias=True
    )[0]
    assert (small - plain).abs().mean() < 2
