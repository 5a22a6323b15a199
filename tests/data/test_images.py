"""Folders and zips of images: every mode, orientation and kind of damage."""

import io
import pickle
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from lddgan_kernels.data import PixelCache, cache_pixels, image_batches, open_images

RED = (200, 40, 40)


def gradient(width=48, height=40):
    """A smooth RGB picture whose left and top differ from right and bottom."""
    x = np.linspace(0, 255, width)[None, :].repeat(height, 0)
    y = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    return np.stack([x, y, 255 - x], 2).astype(np.uint8)


def jpeg(seed=0, side=48):
    noise = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def save(folder, name, image, **options):
    folder.mkdir(parents=True, exist_ok=True)
    image.save(folder / name, **options)


def one(folder, **options):
    dataset = open_images(folder, 16, **options)
    assert len(dataset) == 1
    x = dataset[0]
    assert dataset.skipped == []
    assert x.dtype == torch.uint8
    assert x.is_contiguous()
    return x


@pytest.mark.parametrize(
    ("mode", "suffix", "expected"),
    [
        ("RGB", "png", RED),
        ("RGBA", "png", RED),
        ("CMYK", "tif", RED),
        ("CMYK", "jpg", RED),
        ("P", "gif", RED),
        ("P", "png", RED),
        ("YCbCr", "jpg", RED),
        ("L", "png", (88, 88, 88)),
        ("LA", "png", (88, 88, 88)),
        ("1", "png", (255, 255, 255)),
    ],
)
def test_modes(tmp_path, mode, suffix, expected):
    image = Image.new("RGB", (40, 24), RED)
    if mode == "1":
        image = Image.new("1", (40, 24), 1)
    elif mode == "P":
        image = image.quantize(8)
    else:
        image = image.convert(mode)
    save(tmp_path, f"a.{suffix}", image)
    x = one(tmp_path)
    assert x.shape == (3, 16, 16)
    torch.testing.assert_close(
        x.float(), torch.tensor(expected).float()[:, None, None].expand(3, 16, 16), atol=6, rtol=0
    )
    assert one(tmp_path, channels=1).shape == (1, 16, 16)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path, suffix):
    values = np.full((20, 20), 32896, dtype=np.uint16)  # 128 * 257
    save(tmp_path, f"a.{suffix}", Image.fromarray(values))
    assert one(tmp_path).unique().tolist() == [128]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_alpha_is_composited_on_white(tmp_path, mode):
    image = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 20, 10))
    save(tmp_path, "a.png", image.convert(mode))
    x = one(tmp_path)
    assert x[:, :6].max() < 20
    assert x[:, -6:].min() > 235


def test_transparent_colour_of_an_rgb_png_is_white(tmp_path):
    save(tmp_path, "a.png", Image.new("RGB", (20, 20), RED), transparency=RED)
    assert one(tmp_path).min() == 255


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright = Image.fromarray(gradient(40, 40))
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    save(tmp_path / "turned", "a.jpg", stored, exif=exif, quality=95)
    save(tmp_path / "upright", "a.png", upright)
    turned, expected = one(tmp_path / "turned"), one(tmp_path / "upright")
    assert (turned.float() - expected.float()).abs().max() < 12


@pytest.mark.parametrize("size", [(64, 32), (32, 64), (33, 47), (16, 16), (16, 90)])
def test_crop_is_centred_and_resize_keeps_the_mean(tmp_path, size):
    pixels = gradient(*size)
    save(tmp_path, "a.png", Image.fromarray(pixels))
    x = one(tmp_path).float()
    side = min(size)
    left, top = (size[0] - side) / 2, (size[1] - side) / 2
    crop = pixels[int(top) : int(np.ceil(top)) + side, int(left) : int(np.ceil(left)) + side]
    expected = torch.from_numpy(crop.astype(np.float32)).mean((0, 1))
    torch.testing.assert_close(x.mean((1, 2)), expected, atol=1.5, rtol=0)


def test_resize_does_not_alias(tmp_path):
    """Stripes finer than the target grid become grey."""
    stripes = np.zeros((128, 128, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    save(tmp_path, "a.png", Image.fromarray(stripes))
    x = one(tmp_path)[:, :, 2:-2]
    assert x.min() > 118
    assert x.max() < 137


def test_same_size_is_untouched(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    save(tmp_path, "a.png", Image.fromarray(pixels))
    assert torch.equal(one(tmp_path), torch.from_numpy(pixels).permute(2, 0, 1))


def test_folder_is_recursive_sorted_and_ignores_the_rest(tmp_path):
    for number, name in enumerate(["b/2.PNG", "a/1.png", "c.png", "b/.hidden.png"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (16, 16), number * 10).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    dataset = open_images(tmp_path, 16, channels=1)
    assert [dataset[i][0, 0, 0].item() for i in range(len(dataset))] == [10, 0, 20]
    assert len(open_images(tmp_path, 16, limit=2)) == 2
    assert len(open_images(tmp_path, 16, limit=9)) == 3
    with pytest.raises(IndexError):
        dataset[3]


@pytest.fixture
def damaged(tmp_path):
    """Nine files: a truncated, an empty, a non-image, a too small one; five good ones."""
    folder = tmp_path / "set"
    folder.mkdir()
    for i in range(5):
        (folder / f"good{i}.jpg").write_bytes(jpeg(i))
    (folder / "good1b.jpg").write_bytes(jpeg(7)[:900])
    (folder / "good3b.jpg").write_bytes(b"")
    (folder / "good3c.png").write_bytes(b"this is no picture")
    Image.new("RGB", (31, 64)).save(folder / "small.png")
    return folder


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_images_are_replaced_and_named_once(tmp_path, damaged, kind, workers):
    path = damaged
    if kind == "zip":
        path = tmp_path / "set.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for file in damaged.iterdir():
                archive.write(file, f"inner/{file.name}")
    dataset = open_images(path, 32)
    for epoch in range(2):
        batches = list(image_batches(dataset, 3, 0, epoch, flip=False, workers=workers))
        assert [b.shape for b in batches] == [(3, 3, 32, 32)] * 3
    names = [name.removeprefix("inner/") for name, _ in dataset.skipped]
    reasons = [reason for _, reason in dataset.skipped]
    assert names == ["good1b.jpg", "good3b.jpg", "good3c.png", "small.png"]
    assert "truncated" in reasons[0]
    assert "31x64 pixels, smaller than the crop of 32x32" in reasons[3]
    assert torch.equal(dataset[2], dataset[3])  # good1b is replaced by good2
    assert torch.equal(dataset[8], dataset[0])  # the last one by the first


def test_nothing_usable_is_an_error_with_names_and_sizes(tmp_path):
    save(tmp_path / "small", "a.png", Image.new("RGB", (20, 30)))
    with pytest.raises(ValueError, match="at least 32x32 .* got 1 .* a.png: 20x30 pixels"):
        open_images(tmp_path / "small", 32)


def test_missing_and_empty(tmp_path):
    with pytest.raises(FileNotFoundError, match="open_images: path must be an existing .*nowhere"):
        open_images(tmp_path / "nowhere", 32)
    with pytest.raises(ValueError, match="open_images: path must be .* got none in"):
        open_images(tmp_path, 32)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match="a folder, .zip, .npz, LMDB, .* got the file .*a.txt"):
        open_images(tmp_path / "a.txt", 32)
    for wrong in ({"limit": 0}, {"channels": 2}):
        with pytest.raises(ValueError, match=f"open_images: {next(iter(wrong))} must be"):
            open_images(None, 32, **wrong)
    with pytest.raises(ValueError, match="open_images: resolution must be"):
        open_images(None, 0)


def test_corrupt_zip(tmp_path):
    path = tmp_path / "a.zip"
    path.write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(ValueError, match="a readable zip, got .*a.zip"):
        open_images(path, 32)


def test_zip_member_with_a_wrong_checksum_is_skipped(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.jpg", jpeg(0))
        archive.writestr("b.jpg", jpeg(1))
    data = bytearray(path.read_bytes())
    data[300] ^= 255
    path.write_bytes(data)
    dataset = open_images(path, 32)
    assert torch.equal(dataset[0], dataset[1])
    assert [name for name, _ in dataset.skipped] == ["a.jpg"]


def test_pickles_without_its_handles(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.jpg", jpeg(0))
    dataset = open_images(path, 32)
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[0], dataset[0])


def test_batches_are_a_function_of_seed_and_epoch(damaged):
    dataset = open_images(damaged, 32)
    cached = cache_pixels(dataset)
    assert isinstance(cached, PixelCache)
    assert len(cached.skipped) == 4
    assert cache_pixels(dataset, max_bytes=100) is dataset

    def run(source, seed=0, epoch=0, **options):
        return list(image_batches(source, 2, seed, epoch, flip=True, **options))

    full = run(cached)
    assert len(full) == 4
    assert full[0].dtype == torch.float32
    assert min(b.min() for b in full) >= -1
    assert max(b.max() for b in full) <= 1
    assert all(map(torch.equal, full, run(dataset)))
    assert all(map(torch.equal, full, run(dataset, workers=2)))
    assert all(map(torch.equal, full[2:], run(dataset, start=2)))
    for other in (run(cached, seed=1), run(cached, epoch=1)):
        assert not all(map(torch.equal, full, other))
    # The cached pixels themselves must not be flipped in place.
    assert torch.equal(cached[0], dataset[0])


def test_flips_are_mirrored_images_and_optional(tmp_path):
    save(tmp_path, "a.png", Image.fromarray(gradient(32, 32)))
    cached = cache_pixels(open_images(tmp_path, 32))
    x = cached[0].float() / 127.5 - 1
    batch = next(image_batches(cached, 64, 0, 0, flip=True))
    plain = (batch == x).flatten(1).all(1)
    mirrored = (batch == x.flip(-1)).flatten(1).all(1)
    assert bool((plain ^ mirrored).all())
    assert 16 < int(plain.sum()) < 48
    assert bool((next(image_batches(cached, 64, 0, 0, flip=False)) == x).all())


def test_ranks_share_an_epoch(tmp_path):
    for i in range(13):
        save(tmp_path, f"{i:02}.png", Image.new("L", (16, 16), i))
    cached = cache_pixels(open_images(tmp_path, 16, channels=1))
    seen = []
    for rank in range(2):
        for batch in image_batches(cached, 3, 0, 0, flip=False, rank=rank, world_size=2):
            seen += ((batch[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()
    assert len(seen) == 12
    assert len(set(seen)) == 12
    with pytest.raises(ValueError, match="rank must be 0..1, got 2"):
        next(image_batches(cached, 3, 0, 0, flip=False, rank=2, world_size=2))
