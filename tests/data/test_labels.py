"""Classes by folders and by StyleGAN's `dataset.json`; those of pictures that cannot be read."""

import json
import re
import zipfile

import numpy as np
import pytest
import torch

from lddgan_kernels.data import LatentCache, cache_pixels, open_images, write_listed
from tests.data.test_formats import noise, png, write_tar

PIXELS = noise(4, 16, 16, 3)


def fill(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(PIXELS[0]))
    return folder


def labels(path):
    found = open_images(path, 16).labels
    return None if found is None else found.tolist()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["cat/a.png", "cat/b.png", "dog/a.png"], [0, 0, 1]),
        (["set/train/cat/x/a.png", "set/train/dog/a.png"], [0, 1]),
        (["10/a.png", "2/a.png"], [1, 0]),  # in the order of their paths; 2 is class 0
        (["cat/a.png", "dog/a.png", "a.png"], None),
        (["cat/a.png", "cat/b.png"], None),
        (["a.png", "b.png"], None),
    ],
)
def test_classes_are_folders(tmp_path, names, expected):
    assert labels(fill(tmp_path / "set", names)) == expected
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for name in names:
            file.writestr(name, png(PIXELS[0]))
    assert labels(tmp_path / "a.zip") == expected
    write_tar(tmp_path / "a.tar", {f"./{name}": png(PIXELS[0]) for name in names})
    assert labels(tmp_path / "a.tar") == expected


def test_dataset_json_counts_before_folders(tmp_path):
    names = ["00000/img0.png", "00000/img1.png", "00001/img2.png"]
    listed = json.dumps({"labels": list(zip(names, [7, 0, 7], strict=True))})
    folder = fill(tmp_path / "set", names)
    (folder / "dataset.json").write_text(listed)
    assert labels(folder) == [7, 0, 7]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for name in names:
            file.writestr(name, png(PIXELS[0]))
        file.writestr("dataset.json", listed)
    assert labels(tmp_path / "a.zip") == [7, 0, 7]
    (folder / "dataset.json").write_text('{"labels": null}')
    assert labels(folder) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "gives no labels: Expecting"),
        ("[]", "gives no labels: list indices"),
        (
            '{"labels": [["a/1.png", 1]]}',
            "gives no labels: b/1.png must have an integer .*got None",
        ),
        ('{"labels": [["a/1.png", [0, 1]], ["b/1.png", 1]]}', r"a/1.png .* got \[0, 1\]"),
        ('{"labels": [["a/1.png", 9223372036854775808], ["b/1.png", 1]]}', "integer of 64 bits"),
        ("[" * 200_000, "gives no labels: maximum recursion depth"),
    ],
)
def test_a_dataset_json_that_cannot_be_used_is_named(tmp_path, text, reason):
    folder = fill(tmp_path / "set", ["a/1.png", "b/1.png"])
    (folder / "dataset.json").write_text(text)
    dataset = open_images(folder, 16)
    assert dataset.labels is None
    [(name, why)] = dataset.skipped
    assert name == "dataset.json"
    assert re.search(reason, why)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_webdataset(tmp_path, mode):
    (tmp_path / "set").mkdir()
    suffix = "tar" if mode == "w" else "tar.gz"
    for shard, classes in enumerate(("3", " 0\n"), 1):  # names begin anew in each
        files = {"0.jpg.png": png(PIXELS[0]), "0.cls": classes.encode(), "1.cls": b"2"}
        write_tar(tmp_path / f"set/{shard}.{suffix}", files | {"1.png": png(PIXELS[1])}, mode)
    assert labels(tmp_path / "set") == [3, 2, 0, 2]
    assert labels(tmp_path / f"set/1.{suffix}") == [3, 2]
    for content in (b"cat", None):
        files = {"a/0.png": png(PIXELS[0]), "a/0.cls": b"1", "b/1.png": png(PIXELS[1])}
        write_tar(tmp_path / "a.tar", files | ({} if content is None else {"b/1.cls": content}))
        dataset = open_images(tmp_path / "a.tar", 16)
        assert dataset.labels is None
        [(name, why)] = dataset.skipped
        assert name == "a.tar:b/1.png"
        assert why == "gives no labels: beside it must lie a number in a file .cls"


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"label": [[2, 0], [1]]}, [2, 0, 1]),
        ({"coarse_label": [[0, 0], [0]], "fine_label": [[5, 6], [7]]}, [5, 6, 7]),
        ({"label": [["cat", "dog"], ["cat"]], "class": [[1, 1], [0]]}, [1, 1, 0]),
        ({"label": [[1, None], [1]]}, None),
        ({"label": [[-1, -1], [-1]]}, None),
        ({"label": [[1, 2], None]}, None),
        ({}, None),
    ],
)
def test_parquet(tmp_path, columns, expected):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    for part, pictures in enumerate((PIXELS[:2], PIXELS[2:3])):
        table = {"image": [{"bytes": png(picture), "path": "x.png"} for picture in pictures]}
        table |= {name: parts[part] for name, parts in columns.items() if parts[part]}
        pq.write_table(pa.table(table), tmp_path / f"train-0000{part}-of-00002.parquet")
    assert labels(tmp_path) == expected


def test_samples_of_classes_are_a_data_set_with_labels(tmp_path):
    fill(tmp_path, names := ["3/0.png", "10/0.png"])
    fill(tmp_path, ["3/1.png", "grid.png"])  # of an earlier call
    write_listed(tmp_path, names, [3, 10])
    dataset = open_images(tmp_path, 16)
    assert len(dataset) == 2
    assert dataset.labels.tolist() == [3, 10]


def test_the_label_is_that_of_the_picture_that_comes(tmp_path):
    folder = fill(tmp_path / "set", ["a/1.png", "b/1.png", "c/1.png"])
    (folder / "a/1.png").write_bytes(png(PIXELS[0])[:-30])
    (folder / "c/1.png").write_bytes(b"\x89PNG")
    dataset = open_images(folder, 16)
    cached = cache_pixels(dataset)
    for known in (dataset, cached):
        assert known.labels.tolist() == [1, 1, 1]
        assert known.stand_ins.tolist() == [1, 1, 1]
    fresh = open_images(folder, 16)
    path = tmp_path / "latents.bin"
    cache = LatentCache.create(path, fresh, lambda x: x[:, :1], "f", flip=False)
    assert cache.stand_ins == LatentCache.open(path, "f").stand_ins == [[0, 1], [2, 1]]


def test_limit(tmp_path):
    np.savez(tmp_path / "a.npz", x=PIXELS, y=[3, 2, 1, 0])
    found = open_images(tmp_path / "a.npz", 16, limit=2).labels
    assert torch.equal(found, torch.tensor([3, 2]))
