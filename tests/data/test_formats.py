"""Forms that data sets come in: arrays, tars, shards, parquet, CIFAR, LMDB."""

import gzip
import io
import pickle
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from lddgan_kernels.data import image_batches, open_images

RNG = np.random.default_rng(0)


def noise(*shape):
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def shown(path, **options):
    """All images of a set as (N, 16, 16, 3), none skipped."""
    dataset = open_images(path, 16, **options)
    images = torch.stack([dataset[i] for i in range(len(dataset))])
    assert dataset.skipped == []
    return images.permute(0, 2, 3, 1).numpy()


def write_tar(path, files, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("suffix", ["npy", "npz", "NPZ", "arr_0.npz", "images.npz"])
@pytest.mark.parametrize("layout", ["NHW", "NHW1", "NHWC", "NCHW", "N1HW", "RGBA"])
def test_arrays(tmp_path, suffix, layout):
    x = noise(5, 16, 16, 4 if layout == "RGBA" else 1 if "1" in layout or layout == "NHW" else 3)
    expected = np.repeat(x, 3, 3) if x.shape[3] == 1 else x[..., :3]
    if layout == "RGBA":
        x[..., 3] = 255
    stored = x[..., 0] if layout == "NHW" else x
    stored = stored.transpose(0, 3, 1, 2) if layout in ("NCHW", "N1HW") else stored
    path = tmp_path / f"a.{suffix}"
    with open(path, "wb") as file:
        if suffix == "npy":
            np.save(file, stored)
        elif "." in suffix:
            np.savez(file, **{suffix.split(".")[0]: stored, "y": np.arange(5)})
        else:
            np.savez(file, x=stored, arr_0=np.zeros(3))
    assert np.array_equal(shown(path), expected)


def test_images_whose_sides_could_be_channels_are_square(tmp_path):
    np.save(tmp_path / "a.npy", x := noise(2, 3, 4, 4))
    assert np.array_equal(open_images(tmp_path / "a.npy", 4)[1].numpy(), x[1])
    np.save(tmp_path / "b.npy", x := noise(2, 4, 4, 3))
    assert np.array_equal(open_images(tmp_path / "b.npy", 4)[1].numpy(), x[1].transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("y", "labels"),
    [
        (np.arange(4)[:, None], [0, 1, 2, 3]),
        (np.arange(4, dtype=np.uint8).reshape(1, 4), [0, 1, 2, 3]),
        (np.eye(4), None),
        (np.arange(3), None),
        (np.array(["a", "b", "c", "d"]), None),
        (np.array([{}, 1, 2, 3], dtype=object), None),
    ],
)
def test_labels_of_any_shape(tmp_path, y, labels):
    np.savez(tmp_path / "a.npz", x=noise(4, 16, 16, 3), y=y)
    dataset = open_images(tmp_path / "a.npz", 16)
    assert (None if dataset.labels is None else dataset.labels.tolist()) == labels


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tgz", "tar.xz", "tar.bz2"])
def test_tars_of_images(tmp_path, suffix):
    pixels = noise(3, 16, 16, 3)
    files = {f"./set/{i}.png": png(p) for i, p in enumerate(pixels)}
    files |= {"set/notes.txt": b"no image", "set/._0.png": b"shadow", "set/x": png(pixels[0])}
    mode = {"tar": "w", "tgz": "w:gz"}.get(suffix, f"w:{suffix[4:]}")
    write_tar(tmp_path / f"a.{suffix}", files, mode)
    assert np.array_equal(shown(tmp_path / f"a.{suffix}"), pixels[[0, 1, 2, 0]])


def test_webdataset_shards(tmp_path):
    pixels = noise(6, 16, 16, 3)
    for shard in range(2):
        files = {}
        for i in range(3 * shard, 3 * shard + 3):
            files[f"{i:05}.png"] = png(pixels[i])
            files[f"{i:05}.cls"] = b"1"
            files[f"{i:05}.json"] = b"{}"
        write_tar(tmp_path / f"train-{shard:04}.tar", files)
    assert np.array_equal(shown(tmp_path), pixels)
    dataset = open_images(tmp_path, 16)
    batches = list(image_batches(dataset, 3, 0, 0, flip=False, workers=2))
    assert torch.equal(batches[1], list(image_batches(dataset, 3, 0, 0, flip=False))[1])
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[5], dataset[5])


@pytest.mark.parametrize("column", ["struct", "binary"])
def test_parquet(tmp_path, column):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    pixels = noise(10, 16, 16, 3)

    def write(name, chosen):
        values = [png(p) for p in chosen]
        if column == "struct":
            values = [{"bytes": value, "path": None} for value in values]
        table = pa.table({"label": list(range(len(values))), "img": values})
        (tmp_path / "data").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / "data" / name, row_group_size=3)

    write("train-00000-of-00002.parquet", pixels[:4])
    write("train-00001-of-00002.parquet", pixels[4:9])
    write("test-00000-of-00001.parquet", pixels[9:])
    assert np.array_equal(shown(tmp_path), pixels[:9])
    assert np.array_equal(shown(tmp_path / "data" / "test-00000-of-00001.parquet"), pixels[9:])
    dataset = open_images(tmp_path, 16)
    assert torch.equal(dataset[0], dataset[0])
    assert np.array_equal(dataset[7].permute(1, 2, 0).numpy(), pixels[7])
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[8], dataset[8])


def test_parquet_without_images_damaged_or_not_installed(tmp_path, monkeypatch):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a"], "label": [1]}), path)
    with pytest.raises(ValueError, match="a parquet file of images, got .*a.parquet.*text"):
        open_images(path, 16)
    pq.write_table(pa.table({"image": [{"bytes": None, "path": "a.png"}]}), path)
    with pytest.raises(ValueError, match=r"a.parquet\[0\]|parquet file of images"):
        open_images(path, 16)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match="a parquet file of images, got .*a.parquet"):
        open_images(path, 16)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r"pip install 'lddgan_kernels\[parquet\]'"):
        open_images(path, 16)


@pytest.mark.parametrize("form", ["archive", "folder", "parent"])
@pytest.mark.parametrize("kind", ["10-bin", "100-python", "100-bin"])
def test_cifar_100_and_binary(tmp_path, form, kind):
    ten, binary = kind.startswith("10-"), kind.endswith("bin")
    rows, fine = noise(15, 3072), np.arange(15, dtype=np.uint8)
    if not binary:
        train = {b"data": rows, b"fine_labels": fine.tolist(), b"coarse_labels": [0] * 15}
        files = {"train": pickle.dumps(train, protocol=2), "meta": b"", "test": b""}
    elif ten:
        batches = zip(rows.reshape(5, 3, -1), fine.reshape(5, 3), strict=True)
        files = {
            f"data_batch_{i}.bin": np.hstack([y[:, None], x]).tobytes()
            for i, (x, y) in enumerate(batches, 1)
        }
    else:
        records = np.hstack([np.zeros((15, 1), np.uint8), fine[:, None], rows])
        files = {"train.bin": records.tobytes(), "fine_label_names.txt": b"", "test.bin": b""}
    name = {"10-bin": "cifar-10-batches-bin", "100-python": "cifar-100-python"}
    folder = name.get(kind, "cifar-100-binary")
    write_tar(tmp_path / "c.tar.gz", {f"{folder}/{k}": v for k, v in files.items()}, "w:gz")
    path = tmp_path / "c.tar.gz"
    if form != "archive":
        with tarfile.open(path) as archive:
            archive.extractall(tmp_path / "out", filter="data")
        path = tmp_path / "out" / folder if form == "folder" else tmp_path / "out"
    dataset = open_images(path, 32)
    assert dataset.name == ("cifar10" if ten else "cifar100")
    assert np.array_equal(dataset[7].numpy(), rows[7].reshape(3, 32, 32))
    assert dataset.labels.tolist() == list(range(15))


def test_names_that_do_not_tell(tmp_path):
    pixels = noise(16, 16, 3)
    for suffix in ("jfif", "jpe", "pjpeg", "JPG", "dat", "jpg_small", ""):
        Image.fromarray(pixels).save(tmp_path / f"a.{suffix}", "JPEG")
    for kind in ("PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
        Image.fromarray(pixels).save(tmp_path / kind.lower(), kind)
    for name in ("a.txt", "half.jpg.tmp", "b.png.part"):
        (tmp_path / name).write_bytes(b"\x89PNG" if "." in name[2:] else b"words")
    assert len(shown(tmp_path)) == 13
    with gzip.open(tmp_path / "a.gz", "w") as file:
        file.write(png(pixels))
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0 ftypheic" + bytes(100))
    dataset = open_images(tmp_path, 16)
    assert len([dataset[i] for i in range(len(dataset))]) == 14
    assert [name for name, _ in dataset.skipped] == ["photo.heic"]


def test_smaller_images_are_enlarged_where_asked(tmp_path):
    for i, size in enumerate([(20, 20), (9, 20), (64, 64)]):
        Image.new("RGB", size, (i, 9, 200)).save(tmp_path / f"{i}.png")
    dataset = open_images(tmp_path, 32)
    assert dataset[0].shape == (3, 32, 32)
    assert len(dataset.skipped) == 2
    larger = open_images(tmp_path, 32, enlarge=True)
    assert [larger[i][0, 5, 5].item() for i in range(3)] == [0, 1, 2]
    assert larger.skipped == []
    assert larger.identity != dataset.identity
