"""Stored statistics: every form, and files that are something else or damaged."""

import os
import pickle

import numpy as np
import pytest
import torch

from lddgan_kernels.metrics import load_statistics, statistics_facts

MU, SIGMA = np.arange(3.0), np.diag([1.0, 2.0, 3.0]).astype(np.float32)


def save(path, mu=MU, sigma=SIGMA, **more):
    with open(path, "wb") as file:
        if path.suffix == ".npy":
            np.save(file, {"mu": mu, "sigma": sigma, **more})
        else:
            np.savez(file, mu=mu, sigma=sigma, **more)


@pytest.mark.parametrize("name", ["a.npz", "a.NPZ", "a.npy"])
def test_forms(tmp_path, monkeypatch, name):
    monkeypatch.setenv("HOME", str(tmp_path))
    save(tmp_path / name, fid=np.float64(3.2))
    for path in (tmp_path / name, f"~/{name}"):
        mu, sigma = load_statistics(path)
        assert torch.equal(mu, torch.from_numpy(MU))
        assert torch.equal(sigma, torch.from_numpy(SIGMA).double())


def test_a_dict_pickled_by_python_2(tmp_path):
    """Byte strings as names; arrays named where NumPy had them before its version 2."""
    np.save(tmp_path / "a.npy", np.array({b"mu": MU, b"sigma": SIGMA}, dtype=object))
    content = (tmp_path / "a.npy").read_bytes().replace(b"numpy._core", b"numpy.core")
    with open(tmp_path / "b.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|O", "fortran_order": False, "shape": ()}
        )
        pickle.dump(np.array({b"mu": MU, b"sigma": SIGMA}, dtype=object), file, protocol=2)
    assert b"numpy.core" in content
    for name in ("a.npy", "b.npy"):
        assert torch.equal(load_statistics(tmp_path / name)[0], torch.from_numpy(MU))


def test_other_files_are_no_statistics(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.zeros((2, 4, 4, 3), np.uint8))
    np.save(tmp_path / "x.npy", np.zeros((2, 4, 4, 3), np.uint8))
    for name in ("x.npz", "x.npy", "none.npz", "", "x.zip"):
        assert load_statistics(tmp_path / name) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"network": 5},
        {"network": np.array({}, dtype=object)},
        {"resolution": "x"},
        {"resolution": np.arange(3)},
        {"count": float("nan")},
        {"count": -5},
    ],
    ids=str,
)
def test_wrong_facts_name_the_file(tmp_path, wrong):
    save(tmp_path / "a.npz", **wrong)
    with pytest.raises(ValueError, match=f"with a.*`{next(iter(wrong))}`.*a\\.npz"):
        statistics_facts(tmp_path / "a.npz")


class Harm:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", ["npz", "npy"])
@pytest.mark.parametrize(("changes", "said"), [
    ({"mu": MU * np.nan}, "`mu` with inf or NaN"),
    ({"sigma": SIGMA + np.inf}, "`sigma` with inf or NaN"),
    ({"sigma": SIGMA[:2]}, "shapes"),
    ({"mu": MU[None]}, "shapes"),
    ({"mu": np.array(["a"] * 3)}, "could not convert"),
])  # fmt: skip
def test_wrong_ones_name_the_file(tmp_path, suffix, changes, said):
    save(tmp_path / f"s.{suffix}", **changes)
    with pytest.raises(ValueError, match=f"load_statistics: path must be .*s.{suffix}: .*{said}"):
        load_statistics(tmp_path / f"s.{suffix}")


def test_damaged_and_hostile_ones(tmp_path):
    np.save(tmp_path / "a.npy", {"mu": Harm(tmp_path / "ran"), "sigma": SIGMA})
    with pytest.raises(ValueError, match="a.npy: data has no use for posix.mkdir"):
        load_statistics(tmp_path / "a.npy")
    assert not (tmp_path / "ran").exists()
    for suffix in ("npz", "npy"):
        save(tmp_path / f"s.{suffix}")
        whole = (tmp_path / f"s.{suffix}").read_bytes()
        for keep in (0, 5, 60, len(whole) // 2, len(whole) - 30):
            (tmp_path / f"s.{suffix}").write_bytes(whole[:keep])
            with pytest.raises(ValueError, match=f"s.{suffix}: "):
                load_statistics(tmp_path / f"s.{suffix}")
    np.save(tmp_path / "list.npy", np.array([1, "a"], dtype=object))
    with pytest.raises(ValueError, match="a pickle of"):
        load_statistics(tmp_path / "list.npy")
    save(tmp_path / "m.npy")
    np.save(tmp_path / "m.npy", {"mu": MU})
    with pytest.raises(ValueError, match="m.npy: 'sigma'"):
        load_statistics(tmp_path / "m.npy")
