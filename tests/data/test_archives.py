"""npz, CIFAR-10, LMDB and downloads."""

import hashlib
import http.server
import io
import os
import pickle
import tarfile
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from lddgan_kernels.data import cifar, download, image_batches, open_images

RNG = np.random.default_rng(0)


def noise(*shape):
    return RNG.integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path, channels, save):
    x = noise(7, 16, 16, channels)
    save(tmp_path / "a.npz", x=x, y=np.arange(7, dtype=np.uint8))
    dataset = open_images(tmp_path / "a.npz", 16, limit=6, channels=channels)
    assert (len(dataset), dataset.name) == (6, "a")
    assert np.array_equal(dataset[4].numpy(), x[4].transpose(2, 0, 1))
    assert dataset.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert open_images(tmp_path / "a.npz", 8)[0].shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("arrays", "found"),
    [
        ({name: np.zeros((2, 8, 8, 3), np.uint8) for name in "ab"}, "which holds a, b"),
        ({}, "which holds nothing"),
        ({"x": np.zeros((2, 8, 8, 3), np.float32)}, "`x` float32 (2, 8, 8, 3)"),
        ({"x": np.zeros((2, 5, 8, 8), np.uint8)}, "`x` uint8 (2, 5, 8, 8)"),
        ({"x": np.zeros((8, 8), np.uint8)}, "`x` uint8 (8, 8)"),
        ({"x": np.zeros((0, 8, 8, 3), np.uint8)}, "none in"),
        ({"x": np.zeros((1, 4, 9, 3), np.uint8)}, "9x4 pixels, smaller than the crop of 8x8"),
    ],
)
def test_wrong_npz(tmp_path, arrays, found):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match="open_images: path must") as error:
        open_images(tmp_path / "a.npz", 8)
    assert found in str(error.value)
    assert "a" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04broken"])
def test_corrupt_npz(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match="open_images: path must be an .npz .*a.npz"):
        open_images(tmp_path / "a.npz", 8)


def test_npz_with_pickled_objects_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([{}, {}], dtype=object))
    with pytest.raises(ValueError, match="open_images: path must be an .npz"):
        open_images(tmp_path / "a.npz", 8)


def cifar_batches(per_batch=3):
    return {
        name: {b"data": noise(per_batch, 3072), b"labels": list(range(per_batch))}
        for name in cifar.KINDS[0].files
    }


def cifar_archive(batches):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, batch in batches.items():
            data = pickle.dumps(batch, protocol=2)
            info = tarfile.TarInfo(f"{cifar.KINDS[0].folder}/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.mark.parametrize("extracted", [False, True])
def test_cifar10(tmp_path, extracted):
    batches = cifar_batches()
    path = tmp_path / "cifar-10-python.tar.gz"
    path.write_bytes(cifar_archive(batches))
    if extracted:
        with tarfile.open(path) as archive:
            archive.extractall(tmp_path, filter="data")
        path = tmp_path
        assert torch.equal(
            open_images(tmp_path / cifar.KINDS[0].folder, 32)[4], open_images(path, 32)[4]
        )
    dataset = open_images(path, 32)
    assert (len(dataset), dataset.name) == (15, "cifar10")
    expected = batches["data_batch_2"][b"data"][1].reshape(3, 32, 32)
    assert np.array_equal(dataset[4].numpy(), expected)
    assert dataset.labels.tolist() == [0, 1, 2] * 5


class Harmful:
    def __reduce__(self):
        return os.system, ("echo harm",)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda b: b.pop("data_batch_3"), "CIFAR-10 with data_batch_3"),
        (lambda b: b["data_batch_1"].pop(b"labels"), "CIFAR-10 with data_batch_1.*labels"),
        (
            lambda b: b["data_batch_2"].update({b"data": noise(3, 9)}),
            r"uint8 \(3, 3072\).*\(3, 9\)",
        ),
        (lambda b: b["data_batch_1"].update({b"x": Harmful()}), "no use for (posix|nt).system"),
    ],
)
def test_wrong_cifar10(tmp_path, change, found):
    batches = cifar_batches()
    change(batches)
    path = tmp_path / "cifar.tar.gz"
    path.write_bytes(cifar_archive(batches))
    with pytest.raises(ValueError, match=f"open_images: path must be .*{found}"):
        open_images(path, 32)


def test_cut_cifar10_archive(tmp_path):
    path = tmp_path / "cifar-10-python.tar.gz"
    path.write_bytes(cifar_archive(cifar_batches())[:20000])
    with pytest.raises(ValueError, match="path must be .*cifar-10-python.tar.gz: Compressed file"):
        open_images(path, 32)
    (tmp_path / cifar.KINDS[0].folder).mkdir()
    (tmp_path / cifar.KINDS[0].folder / "data_batch_1").write_bytes(b"junk")
    with pytest.raises(ValueError, match="CIFAR-10 with data_batch_1"):
        open_images(tmp_path, 32)


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `content`; cuts the first answer short where asked to."""

    content = b""
    cut = 0
    ranges: list = []  # noqa: RUF012

    def do_GET(self):
        wanted = self.headers.get("Range")
        type(self).ranges.append(wanted)
        start = int(wanted.split("=")[1].rstrip("-")) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(self.content) - start))
        self.end_headers()
        end = type(self).cut or len(self.content)
        type(self).cut = 0
        self.wfile.write(self.content[start:end])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def served(tmp_path, monkeypatch):
    content = cifar_archive(cifar_batches())
    monkeypatch.setattr(Server, "content", content)
    monkeypatch.setattr(Server, "ranges", [])
    monkeypatch.setenv("LDDGAN_CACHE", str(tmp_path / "cache"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(cifar, "URL", f"http://127.0.0.1:{server.server_port}/cifar.tar.gz")
        monkeypatch.setattr(cifar, "MD5", hashlib.md5(content).hexdigest())
        yield content
        server.shutdown()


def test_download_resumes_and_checks(tmp_path, served, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Server, "cut", 1000)
    with pytest.raises(OSError, match="1000 of .* run again to go on from"):
        open_images("cifar10", 32)
    part = tmp_path / "cache" / "cifar-10-python.tar.gz.part"
    assert part.read_bytes() == served[:1000]
    assert len(open_images("cifar10", 32)) == 15
    assert Server.ranges == [None, "bytes=1000-"]
    assert [p.name for p in part.parent.iterdir()] == ["cifar-10-python.tar.gz"]
    assert len(open_images("cifar10", 32)) == 15  # found in the cache
    assert len(Server.ranges) == 2


def test_download_of_something_else_is_refused(tmp_path, served):
    with pytest.raises(ValueError, match="must have MD5 0, got"):
        download(cifar.URL, tmp_path / "x", md5="0")
    assert not list(tmp_path.glob("x*"))


def test_download_without_a_server(tmp_path):
    with pytest.raises(OSError, match="download: http://127.0.0.1:9/x could not be fetched"):
        download("http://127.0.0.1:9/x", tmp_path / "x", md5="0")


def write_lmdb(path, items, subdir=True):
    lmdb = pytest.importorskip("lmdb")
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        lmdb.open(str(path), map_size=1 << 24, subdir=subdir, lock=False) as environment,
        environment.begin(write=True) as transaction,
    ):
        for key, value in items.items():
            transaction.put(key.encode(), value)


def encoded(pixels, kind):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, lossless=True)
    return buffer.getvalue()


def test_lmdb_of_encoded_images(tmp_path):
    pixels = noise(4, 20, 20, 3)
    items = {k: encoded(p, "WEBP") for k, p in zip("dbca", pixels, strict=True)}
    write_lmdb(tmp_path / "church_outdoor_train_lmdb", {**items, "bb": b"broken"})
    dataset = open_images(tmp_path / "church_outdoor_train_lmdb", 20)
    assert (len(dataset), dataset.name) == (5, "church_outdoor_train_lmdb")
    assert np.array_equal(dataset[4].numpy(), pixels[0].transpose(2, 0, 1))
    assert torch.equal(dataset[2], dataset[3])
    assert [name for name, _ in dataset.skipped] == ["bb"]
    batches = list(image_batches(dataset, 5, 0, 0, flip=False, workers=2))
    assert torch.equal(batches[0], next(image_batches(dataset, 5, 0, 0, flip=False)))
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[0], dataset[0])
    with pytest.raises(ValueError, match="one LMDB folder, got .*church_outdoor_train_lmdb"):
        open_images(tmp_path, 20)


@pytest.mark.parametrize("layout", ["train.lmdb", "single"])
def test_lmdb_of_raw_pixels(tmp_path, layout):
    pixels = noise(3, 16, 16, 3)
    items = {str(i): p.tobytes() for i, p in enumerate(pixels)}
    if layout == "single":
        path = tmp_path / "celeba.lmdb"
        write_lmdb(path, items, subdir=False)
    else:
        path = tmp_path / "celeba"
        write_lmdb(path / "train.lmdb", items)
    dataset = open_images(path, 16)
    assert dataset.name == path.name
    assert np.array_equal(dataset[1].numpy(), pixels[1].transpose(2, 0, 1))
    with pytest.raises(ValueError, match="16x16 pixels, smaller than the crop of 32x32"):
        open_images(path, 32)
