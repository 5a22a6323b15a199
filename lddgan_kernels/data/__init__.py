"""Images in: folders, archives, arrays, CIFAR, LMDB, the embedded digits; cached latents."""

from lddgan_kernels.data.batches import (
    PixelCache,
    cache_pixels,
    epoch_order,
    image_batches,
    steps_per_epoch,
)
from lddgan_kernels.data.digits import Digits, load_digits
from lddgan_kernels.data.download import cache_folder, download
from lddgan_kernels.data.folder import read_listed, write_listed
from lddgan_kernels.data.images import ImageDataset, open_images
from lddgan_kernels.data.latents import LatentCache, weights_fingerprint
from lddgan_kernels.data.share import Share

__all__ = [
    "Digits",
    "ImageDataset",
    "LatentCache",
    "PixelCache",
    "Share",
    "cache_folder",
    "cache_pixels",
    "download",
    "epoch_order",
    "image_batches",
    "load_digits",
    "open_images",
    "read_listed",
    "steps_per_epoch",
    "weights_fingerprint",
    "write_listed",
]
