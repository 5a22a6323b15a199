"""The latent cache: contents, resuming, mismatches, a full disk."""

import errno
import io
import json
import os
import shutil
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lddgan_kernels.data import (
    LatentCache,
    cache_pixels,
    load_digits,
    open_images,
    weights_fingerprint,
)
from tests.data.test_archives import write_lmdb
from tests.data.test_formats import write_tar


def encode(x):
    return torch.nn.functional.avg_pool2d(x, 2) * 3


@pytest.fixture
def digits():
    return open_images(None, 8, channels=1, limit=21)


def expected_latents():
    x = load_digits("train").images[:21].float() / 127.5 - 1
    return torch.stack([encode(x), encode(x.flip(-1))], 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_holds_both_flips(tmp_path, digits, dtype):
    made = LatentCache.create(
        tmp_path / "sub" / "l", digits, encode, "abc", flip=True, dtype=dtype, batch_size=4
    )
    cache = LatentCache.open(tmp_path / "sub" / "l", "abc", dataset=digits)
    expected = expected_latents().to(dtype)
    assert torch.equal(cache.latents, expected)
    assert torch.equal(made.latents, expected)
    assert cache.abs_max == expected.abs().max()
    assert sorted(p.name for p in (tmp_path / "sub").iterdir()) == ["l", "l.json"]


def test_batches(tmp_path, digits):
    cache = LatentCache.create(tmp_path / "l", digits, encode, "abc", flip=True)
    full = list(cache.batches(4, seed=3, epoch=2))
    assert [b.shape for b in full] == [(4, 1, 4, 4)] * 5
    assert all(b.dtype == torch.float32 and b.is_contiguous() for b in full)
    assert all(map(torch.equal, full, cache.batches(4, seed=3, epoch=2)))
    assert all(map(torch.equal, full[3:], cache.batches(4, seed=3, epoch=2, start=3)))
    assert not torch.equal(full[0], next(cache.batches(4, seed=3, epoch=3)))
    known = cache.latents.float().flatten(2)
    hits = [(known == row).all(-1).nonzero()[0].tolist() for row in torch.cat(full).flatten(1)]
    assert len({image for image, _ in hits}) == 20  # each image at most once an epoch
    assert {flip for _, flip in hits} == {0, 1}


def test_without_flips_and_larger_batch_than_set(tmp_path, digits):
    cache = LatentCache.create(tmp_path / "l", digits, encode, "abc", flip=False)
    assert cache.shape == (21, 1, 1, 4, 4)
    batch = next(cache.batches(50, seed=0, epoch=0))
    assert batch.shape == (50, 1, 4, 4)
    assert len(batch.flatten(1).unique(dim=0)) == 21


def test_goes_on_where_it_stopped(tmp_path, digits):
    calls = []

    def dies_in_the_third_batch(x):
        calls.append(len(x))
        if len(calls) > 5:
            raise KeyboardInterrupt
        return encode(x)

    with pytest.raises(KeyboardInterrupt):
        LatentCache.create(
            tmp_path / "l", digits, dies_in_the_third_batch, "abc", flip=True, batch_size=4
        )
    assert not (tmp_path / "l").exists()
    with pytest.raises(FileNotFoundError):
        LatentCache.open(tmp_path / "l", "abc")
    with open(tmp_path / "l.part", "ab") as file:
        file.write(b"half")  # an item cut in the middle
    seen = []

    def counted(x):
        seen.append(len(x))
        return encode(x)

    cache = LatentCache.create(tmp_path / "l", digits, counted, "abc", flip=True, batch_size=4)
    assert sum(seen[2:]) == 2 * (21 - 4)  # the first pair of calls asks for the shape
    assert torch.equal(cache.latents, expected_latents().half())
    # A finished cache is opened, not made again.
    LatentCache.create(tmp_path / "l", digits, dies_in_the_third_batch, "abc", flip=True)


def test_an_attempt_of_another_autoencoder_is_dropped(tmp_path, digits):
    def dies(x):
        if len(x) > 1:
            raise KeyboardInterrupt
        return encode(x)

    with pytest.raises(KeyboardInterrupt):
        LatentCache.create(tmp_path / "l", digits, dies, "old", flip=True)
    (tmp_path / "l.part").write_bytes(b"\0" * 640)
    cache = LatentCache.create(tmp_path / "l", digits, encode, "new", flip=True)
    assert torch.equal(cache.latents, expected_latents().half())


def test_mismatches(tmp_path, digits):
    LatentCache.create(tmp_path / "l", digits, encode, "abc", flip=True)
    with pytest.raises(ValueError, match="autoencoder xyz, got .*l, encoded by abc"):
        LatentCache.open(tmp_path / "l", "xyz")
    fewer = open_images(None, 8, channels=1, limit=20)
    with pytest.raises(ValueError, match="'length': 20.*'length': 21"):
        LatentCache.open(tmp_path / "l", "abc", dataset=fewer)
    with pytest.warns(UserWarning, match="it is made anew"):
        assert len(LatentCache.create(tmp_path / "l", fewer, encode, "abc", flip=True)) == 20
    with pytest.warns(UserWarning, match="it is made anew"):
        twice = LatentCache.create(
            tmp_path / "l", digits, lambda x: 2 * encode(x), "xyz", flip=True
        )
    assert torch.equal(twice.latents, (2 * expected_latents()).half())
    with open(tmp_path / "l", "ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match="must be of 1344 bytes, got 1345"):
        LatentCache.open(tmp_path / "l", "xyz")
    (tmp_path / "l.json").write_text("{")
    with pytest.raises(ValueError, match="path must be a cache"):
        LatentCache.open(tmp_path / "l", "xyz")


def test_full_disk_is_seen_before_encoding(tmp_path, digits, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(OSError, match="needs 1344 bytes, 100 are free") as error:
        LatentCache.create(tmp_path / "l", digits, encode, "abc", flip=True)
    assert error.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_latents_out_of_range_are_refused(tmp_path, digits):
    with pytest.raises(ValueError, match="encode must be finite in torch.float16, got inf or NaN"):
        LatentCache.create(tmp_path / "l", digits, lambda x: x * 1e5, "abc", flip=True)
    with pytest.raises(ValueError, match="dtype must be float16, bfloat16, float32"):
        LatentCache.create(tmp_path / "l", digits, encode, "abc", flip=True, dtype=torch.float64)


def test_fingerprint_sees_weights_but_not_the_scale():
    module = nn.Linear(3, 2)
    module.register_buffer("latent_scale", torch.ones(()))
    before = weights_fingerprint(module)
    module.latent_scale.fill_(6)
    assert weights_fingerprint(module) == before
    with torch.no_grad():
        module.weight[0, 0] += 1e-3
    assert weights_fingerprint(module) != before
    json.dumps(before)


def test_a_flipped_bit_is_seen(tmp_path, digits):
    LatentCache.create(tmp_path / "l", digits, encode, "abc", flip=True)
    for name, position in (("l", 700), ("l.json", 20), ("l", 0), ("l.json", -40)):
        whole = (tmp_path / name).read_bytes()
        content = bytearray(whole)
        content[position] ^= 4
        (tmp_path / name).write_bytes(content)
        with pytest.raises((ValueError, FileNotFoundError)):
            LatentCache.open(tmp_path / "l", "abc")
        with pytest.warns(UserWarning, match="it is made anew"):
            cache = LatentCache.create(tmp_path / "l", digits, encode, "abc", flip=True)
        assert torch.equal(cache.latents, expected_latents().half())
        assert (tmp_path / name).read_bytes() == whole


def test_a_damaged_attempt_goes_on_from_what_is_whole(tmp_path, digits):
    calls = []

    def dies(x):
        calls.append(len(x))
        if len(calls) == 9:
            raise KeyboardInterrupt
        return encode(x)

    with pytest.raises(KeyboardInterrupt):
        LatentCache.create(tmp_path / "l", digits, dies, "abc", flip=True, batch_size=4)
    content = bytearray((tmp_path / "l.part").read_bytes())
    assert len(content) == 12 * 64
    content[7 * 64 + 5] ^= 1
    (tmp_path / "l.part").write_bytes(content)
    calls = [0] * 100
    cache = LatentCache.create(tmp_path / "l", digits, dies, "abc", flip=True, batch_size=4)
    assert sum(calls[102:]) == 2 * (21 - 7)
    assert torch.equal(cache.latents, expected_latents().half())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["l", "l.json"]


def test_two_at_once_do_not_mix(tmp_path, digits):
    def second(x):
        if len(x) > 1:
            with pytest.raises(OSError, match="l is being written by another process"):
                LatentCache.create(tmp_path / "l", digits, encode, "abc", flip=True)
        return encode(x)

    cache = LatentCache.create(tmp_path / "l", digits, second, "abc", flip=True)
    assert torch.equal(cache.latents, expected_latents().half())


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "npz", "npy", "lmdb", "parquet"])
def test_other_pictures_are_other_latents(tmp_path, kind):
    """Same names, number and size; written in the same place, or edited there."""
    rng = np.random.default_rng(0)

    def write(pixels, folder):
        folder.mkdir(exist_ok=True)
        path = folder / f"set.{kind}"
        files = {f"{i}.bmp": bmp(p) for i, p in enumerate(pixels)}
        if kind == "folder":
            path.mkdir(exist_ok=True)
            for name, content in files.items():
                (path / name).write_bytes(content)
                os.utime(path / name, (1, 1))
        elif kind == "zip":
            with zipfile.ZipFile(path, "w") as archive:
                for name, content in files.items():
                    archive.writestr(zipfile.ZipInfo(name), content)
        elif kind == "tar":
            write_tar(path, files)
        elif kind == "npz":
            np.savez(path, x=pixels)
        elif kind == "npy":
            np.save(path, pixels)
        elif kind == "lmdb":
            shutil.rmtree(path, ignore_errors=True)
            write_lmdb(path, files)
        else:
            pa = pytest.importorskip("pyarrow")
            pq = pytest.importorskip("pyarrow.parquet")
            pq.write_table(pa.table({"image": list(files.values())}), path)
        return open_images(path, 8)

    pixels = rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    before = write(pixels, tmp_path)
    copy = write(pixels, tmp_path / "moved")
    assert copy.identity == before.identity
    first = LatentCache.create(tmp_path / "l", before, encode, "abc", flip=False)
    again = LatentCache.create(tmp_path / "l", copy, None, "abc", flip=False)
    latents = first.latents
    assert torch.equal(latents, again.latents)
    pixels[3, 2, 1, 0] ^= 1
    edited = write(pixels, tmp_path)
    assert edited.identity != before.identity
    with pytest.warns(UserWarning, match="encode the data set again; it is made anew"):
        cache = LatentCache.create(tmp_path / "l", edited, encode, "abc", flip=False)
    assert not torch.equal(cache.latents, latents)
    with pytest.raises(ValueError, match="was changed since it was opened"):
        next(first.batches(2, 0, 0))
    assert cache_pixels(edited).identity == edited.identity
    assert open_images(None, 8).identity != open_images(None, 8, limit=20).identity


@pytest.mark.parametrize("change", ["cut", "written to", "replaced", "removed"])
def test_a_file_that_changes_after_opening(tmp_path, digits, change):
    """A mapping of it would end the process, or go on with other numbers."""
    path = tmp_path / "l"
    cache = LatentCache.create(path, digits, encode, "abc", flip=True)
    batches = cache.batches(4, seed=0, epoch=0)
    next(batches)
    if change == "cut":
        os.truncate(path, 100)
    elif change == "written to":
        with open(path, "r+b") as file:
            file.write(b"0000")
    elif change == "replaced":
        (tmp_path / "other").write_bytes(path.read_bytes()[::-1])
        os.replace(tmp_path / "other", path)
    else:
        path.unlink()
    error = FileNotFoundError if change == "removed" else ValueError
    with pytest.raises(error, match="was changed since it was opened|No such file"):
        next(batches)


def bmp(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "BMP")
    return buffer.getvalue()
