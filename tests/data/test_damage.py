"""Hostile, damaged and odd inputs: named, never silent, never the end of the process."""

import contextlib
import io
import os
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from lddgan_kernels.data import folder, kinds, open_images, tar
from lddgan_kernels.data.lmdb import LmdbSource
from tests.data.test_archives import write_lmdb
from tests.data.test_formats import noise, png, write_tar


def pictures(path, count=2, start=0):
    path.mkdir(parents=True, exist_ok=True)
    for i in range(start, start + count):
        Image.new("RGB", (16, 16), (i, i, i)).save(path / f"{i}.png")
    return path


def read_all(path, **options):
    """(dataset, the red value of each image) after reading every one."""
    dataset = open_images(path, 16, **options)
    return dataset, [dataset[i][0, 0, 0].item() for i in range(len(dataset))]


def test_linked_folders_are_entered_once(tmp_path):
    root = pictures(tmp_path / "set")
    pictures(tmp_path / "elsewhere", 3, 10)
    (root / "a_link").symlink_to(tmp_path / "elsewhere")
    (root / "b_link").symlink_to(tmp_path / "elsewhere")
    (root / "loop").symlink_to(root)
    (root / "sub").mkdir()
    (root / "sub" / "up").symlink_to(root)
    (root / "sub" / "own.png").symlink_to(root / "1.png")
    dataset, values = read_all(root)
    assert values == [0, 1, 10, 11, 12, 1]
    assert dataset.skipped == []


@pytest.mark.parametrize("kind", ["npy", "zip", "tar", "lmdb"])
def test_a_file_that_is_cut_short_after_opening(tmp_path, kind):
    """A mapping of it would end the process; what is left of archives is used, the rest named."""
    path = tmp_path / f"x.{kind}"
    files = {f"{i:03d}.png": png(noise(16, 16, 3)) for i in range(50)}
    if kind == "npy":
        np.save(path, noise(50, 16, 16, 3))
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    elif kind == "tar":
        write_tar(path, files)
    else:
        write_lmdb(path, files)
    dataset = open_images(path, 16)
    os.truncate(path / "data.mdb" if path.is_dir() else path, 25000)
    if kind == "npy":
        with pytest.raises(ValueError, match="none usable: .* was changed since it was opened"):
            dataset[0]
    else:
        assert all(dataset[i].shape == (3, 16, 16) for i in range(50))
        assert 5 < len(dataset.skipped) < 45


@pytest.mark.parametrize("shape", [(6, 16, 16, 3), (6, 3, 16, 16), (6, 16, 16)])
@pytest.mark.parametrize("order", "CF")
def test_npy_in_both_orders(tmp_path, shape, order):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.save(tmp_path / "x.npy", np.asarray(pixels, order=order))
    np.savez(tmp_path / "x.npz", x=pixels)
    one, other = (open_images(tmp_path / name, 16) for name in ("x.npy", "x.npz"))
    assert one.identity == other.identity
    assert all(one[i].equal(other[i]) for i in range(6))


def test_what_is_no_file_is_named_and_does_not_block(tmp_path, monkeypatch):
    root = pictures(tmp_path / "set")
    os.mkfifo(root / "pipe.png")
    (root / "gone.png").symlink_to(tmp_path / "nowhere")
    pictures(root / "closed")
    scan = os.scandir

    def refusing(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(folder.os, "scandir", refusing)
    dataset, values = read_all(root)
    assert values == [0, 1]
    assert sorted(dataset.skipped) == [
        ("closed", "Permission denied"),
        ("gone.png", "no file that can be read"),
        ("pipe.png", "no file that can be read"),
    ]
    with pytest.raises(ValueError, match="got the file .*pipe.png"):
        open_images(root / "pipe.png", 16)
    os.mkfifo(root / "samples.json")
    assert len(open_images(root, 16)) == 2
    os.mkfifo(root / "data_batch_2")
    (root / "data_batch_1").write_bytes(pickle.dumps({b"data": noise(1, 3072), b"labels": [0]}))
    with pytest.raises(ValueError, match="CIFAR-10 with data_batch_2, got .* is not a file"):
        open_images(root, 16)


def test_names_that_are_not_utf8(tmp_path):
    root = os.fsencode(pictures(tmp_path / "set"))
    with open(root + b"/caf\xe9.png", "wb") as file:
        file.write(b"junk")
    os.rename(root, os.fsencode(tmp_path) + b"/s\xe9t")
    dataset, _ = read_all(os.fsdecode(os.fsencode(tmp_path) + b"/s\xe9t"))
    assert [name for name, _ in dataset.skipped] == ["caf\\xe9.png"]
    assert dataset.name == "s\\xe9t"
    assert kinds.readable("a\nb\x1b[é.png") == "a\\nb\\x1b[é.png"
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        for name in ("caf\udce9.png", "good.png"):
            content = png(noise(16, 16, 3)) if name[0] == "g" else b"junk"
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    dataset, _ = read_all(tmp_path / "a.tar")
    assert dataset.skipped[0][0] == "a.tar:caf\\xe9.png"
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("été.png", b"x")
    content = (tmp_path / "a.zip").read_bytes().replace("é".encode(), b"\xe9\xe9")
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(ValueError, match="a readable zip, got .*a.zip: 'utf-8'"):
        open_images(tmp_path / "a.zip", 16)


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "folder", "lmdb"])
def test_what_is_too_large_is_not_read(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(kinds, "LARGEST", 2000)
    monkeypatch.setattr(tar, "LARGEST", 2000)
    files = {"a.png": png(noise(16, 16, 3)), "bomb.png": bytes(5000)}
    path = tmp_path / f"set.{kind}"
    if kind == "folder":
        path.mkdir()
        for name, content in files.items():
            (path / name).write_bytes(content)
    elif kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    elif kind == "lmdb":
        write_lmdb(path, files)
    else:
        write_tar(path, files, "w:gz" if kind == "tar.gz" else "w")
    dataset, _ = read_all(path)
    ((name, reason),) = dataset.skipped
    assert "bomb.png" in name
    assert "more than" in reason or "too large" in reason


def test_a_compressed_tar_that_fills_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tar, "MOST_HELD", 3000)
    files = {f"{i}.png": bytes(1000) for i in range(4)}
    write_tar(tmp_path / "a.tar.gz", files, "w:gz")
    with pytest.raises(ValueError, match=r"a.tar.gz: of more than .* unpack it into a plain .tar"):
        open_images(tmp_path / "a.tar.gz", 16)


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.xz"])
def test_damaged_tars(tmp_path, suffix):
    files = {f"{i}.png": png(noise(16, 16, 3)) for i in range(9)}
    path = tmp_path / f"a.{suffix}"
    write_tar(path, files, "w" if suffix == "tar" else f"w:{suffix[4:]}")
    whole = path.read_bytes()
    headers = [512 * i for i in range(1, len(whole) // 512) if whole[512 * i + 1 :][:4] == b".png"]
    flipped = bytearray(whole)
    position = headers[5] + 3 if suffix == "tar" else len(whole) // 2
    flipped[position : position + 20] = bytes(b ^ 255 for b in flipped[position : position + 20])
    for content in (whole[: len(whole) // 2 + 7], bytes(flipped), b"junk" * 200, b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"a whole tar archive, got .*a.{suffix}"):
            open_images(path, 16)
    if suffix == "tar":  # cut exactly between two files
        path.write_bytes(whole[: headers[5]])
        dataset, _ = read_all(path)
        assert dataset.skipped == [("a.tar", "ends without a mark: it may have been cut short")]


def test_odd_zips(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", png(noise(16, 16, 3)))
        archive.writestr("b.png", png(noise(16, 16, 3)))
    whole = path.read_bytes()
    central = whole.index(b"PK\x01\x02")
    for offset, value in ((6, 99), (8, 1), (10, 77)):  # version, encrypted, compression
        content = bytearray(whole)
        content[central + offset] = value
        path.write_bytes(content)
        if offset == 6:
            with pytest.raises(ValueError, match="a readable zip, got .*a.zip: zip file version"):
                open_images(path, 16)
        else:
            assert [name for name, _ in read_all(path)[0].skipped] == ["a.png"]


def test_lmdb_cut_short_or_damaged(tmp_path):
    images = {f"{i:03}": png(noise(40, 40, 3)) for i in range(60)}
    write_lmdb(tmp_path / "set_lmdb", images | {"small": b"x"})
    path = tmp_path / "set_lmdb" / "data.mdb"
    whole = path.read_bytes()
    assert len(read_all(path.parent)[1]) == 61
    for keep in (0, 100, 5000, 9000, len(whole) // 2, len(whole) - 4096):
        path.write_bytes(whole[:keep])
        with pytest.raises(ValueError, match="a readable LMDB, got .*data.mdb: "):
            open_images(path.parent, 16)
    generator = np.random.default_rng(0)
    for _ in range(60):  # never anything but an error or images
        content = np.frombuffer(whole, np.uint8).copy()
        start = generator.integers(len(whole) - 600)
        content[start : start + 600] = generator.integers(0, 256, 600)
        path.write_bytes(content.tobytes())
        with contextlib.suppress(ValueError):
            read_all(path.parent)


def test_lmdb_values_are_those_of_the_library(tmp_path):
    lmdb = pytest.importorskip("lmdb")
    generator = np.random.default_rng(0)
    path = tmp_path / "a.lmdb"
    with lmdb.open(str(path), map_size=1 << 26, subdir=False, lock=False) as environment:
        for _ in range(3):  # pages are freed and taken again
            with environment.begin(write=True) as transaction:
                for _ in range(200):
                    size = int(generator.integers(1, 9000))
                    transaction.put(b"%05d" % generator.integers(500), generator.bytes(size))
                    transaction.delete(b"%05d" % generator.integers(500))
        with environment.begin() as transaction:
            expected = [(bytes(k).decode(), bytes(v)) for k, v in transaction.cursor()]
    source = LmdbSource(path)
    assert [(source.item_name(i), source.read(i)) for i in range(len(source))] == expected


def test_an_empty_lmdb_and_one_of_databases(tmp_path):
    lmdb = pytest.importorskip("lmdb")
    write_lmdb(tmp_path / "empty.lmdb", {}, subdir=False)
    with pytest.raises(ValueError, match="none in .*empty.lmdb"):
        open_images(tmp_path / "empty.lmdb", 16)
    with lmdb.open(str(tmp_path / "nested"), map_size=1 << 20, max_dbs=2) as environment:
        environment.open_db(b"inner")
    with pytest.raises(ValueError, match="databases inside a database"):
        open_images(tmp_path / "nested", 16)


def test_encoded_values_whose_size_fits_raw_pixels(tmp_path):
    values = {}
    for i in range(4):
        buffer = io.BytesIO()
        kind = ("GIF", "TIFF", "BMP", "PNG")[i]
        Image.new("RGB", (16, 16), (90, 90, 90)).save(buffer, kind)
        values[str(i)] = buffer.getvalue().ljust(3 * 30 * 30, b"\0")
    write_lmdb(tmp_path / "a_lmdb", values)
    dataset, shown = read_all(tmp_path / "a_lmdb")
    assert shown == [90] * 4
    assert dataset.skipped == []
    raw = noise(3, 16, 16, 3)
    raw[0, 0, 0] = (0xFF, 0xD8, 0xFF)  # as a JPEG begins
    write_lmdb(tmp_path / "raw_lmdb", {str(i): pixels.tobytes() for i, pixels in enumerate(raw)})
    dataset = open_images(tmp_path / "raw_lmdb", 16)
    assert np.array_equal(dataset[0].numpy(), raw[0].transpose(2, 0, 1))
    # A stray value of a square size among encoded ones is not taken for pixels either.
    write_lmdb(tmp_path / "b_lmdb", {"a": png(noise(16, 16, 3)), "b": bytes(768), "c": b"xx"})
    assert [name for name, _ in read_all(tmp_path / "b_lmdb")[0].skipped] == ["b", "c"]


@pytest.mark.parametrize(("dtype", "said"), [
    (np.float32, "floating-point pixels, whose range is not known"),
    (np.int32, "32-bit pixels, whose range is not known"),
])  # fmt: skip
def test_tiffs_of_unknown_range_are_named(tmp_path, dtype, said):
    root = pictures(tmp_path / "set")
    Image.fromarray(np.full((16, 16), 1, dtype)).save(root / "a.tiff")
    dataset, _ = read_all(root)
    ((name, reason),) = dataset.skipped
    assert name == "a.tiff"
    assert said in reason


def test_sixteen_bit_pgm(tmp_path):
    head = b"P5 16 16 65535\n"
    (tmp_path / "a.pgm").write_bytes(head + np.full(256, 32896, ">u2").tobytes())
    assert read_all(tmp_path)[1] == [128]


def test_a_folder_of_samples_holds_those_of_the_last_call(tmp_path):
    pictures(tmp_path, 8)
    Image.new("RGB", (64, 64)).save(tmp_path / "grid.png")
    folder.write_listed(tmp_path, ["1.png", "0.png", "7.png", "9.png"], seeds="0,1,7,9")
    assert read_all(tmp_path)[1] == [1, 0, 7]
    assert folder.read_listed(tmp_path)["seeds"] == "0,1,7,9"
    for other in ("[1]", "{", '{"made by": "lddgan_kernels.sample", "pictures": ["../a"]}'):
        (tmp_path / "samples.json").write_text(other)
        assert len(read_all(tmp_path)[1]) == 9


def test_archives_beside_pictures_are_named(tmp_path):
    pictures(tmp_path)
    write_tar(tmp_path / "more.tar", {"a.png": b"x"})
    (tmp_path / "labels.csv").write_text("0")
    dataset, _ = read_all(tmp_path)
    assert [name for name, _ in dataset.skipped] == ["more.tar"]


def test_a_cifar_archive_with_a_flipped_byte(tmp_path):
    batch = pickle.dumps({b"labels": [0] * 9, b"data": noise(9, 3072)}, protocol=2)
    files = {f"cifar-10-batches-py/data_batch_{i}": batch for i in range(1, 6)}
    write_tar(tmp_path / "c.tar.gz", files, "w:gz")
    whole = (tmp_path / "c.tar.gz").read_bytes()
    for position in range(40, len(whole), len(whole) // 7):
        content = bytearray(whole)
        content[position] ^= 16
        (tmp_path / "c.tar.gz").write_bytes(content)
        with pytest.raises(ValueError, match="path must be .*c.tar.gz"):
            open_images(tmp_path / "c.tar.gz", 32)


def test_paths_of_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    np.save(tmp_path / "a.npy", noise(2, 16, 16))
    assert torch.is_tensor(open_images("~/a.npy", 16)[0])
