"""The sample command: pictures as they are drawn, going on, and what counts as a sample."""

import os
import signal

import numpy as np
import pytest
from PIL import Image

from lddgan_kernels import sample
from lddgan_kernels.data import open_images
from lddgan_kernels.models import Generator
from lddgan_kernels.trainer.system import System
from tests.interop.test_sample import save, tiny


@pytest.fixture
def published(tmp_path):
    return [*save(tmp_path, tiny(Generator, 3)), "--device", "cpu", "--batch-size", "2"]


@pytest.fixture
def drawn(monkeypatch):
    """The seeds that were drawn; `stop_after` batches, a Ctrl-C comes."""
    call = System.__call__

    class Drawn(list):
        stop_after = 0

    seen = Drawn()

    def counted(self, seeds, batch_size=64):
        seen.extend(seeds.tolist())
        if len(seen) == 2 * seen.stop_after:
            os.kill(os.getpid(), signal.SIGINT)
        return call(self, seeds, batch_size)

    monkeypatch.setattr(System, "__call__", counted)
    return seen


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def pictures(folder):
    return {path.name: np.asarray(Image.open(path)) for path in folder.glob("*.png")}


def test_a_stopped_call_goes_on(tmp_path, published, drawn, capsys):
    out = tmp_path / "out"
    flags = [*published, "--seeds", "0-6", "--out", str(out)]
    drawn.stop_after = 2
    assert sample.main(flags) == 130
    assert "stopped after 4 of 7 samples in" in (said := capsys.readouterr().err)
    assert "the same command goes on" in said
    assert names(out) == ["0.png", "1.png", "2.png", "3.png", "samples.json"]
    assert len(open_images(out, 8)) == 4
    (out / "1.png").write_bytes((out / "1.png").read_bytes()[:-9])  # cut by a power failure
    drawn.clear()
    drawn.stop_after = 0
    assert sample.main(flags) == 0
    assert drawn == [1, 4, 5, 6]
    assert "7 samples -> " in (said := capsys.readouterr().out)
    assert "3 were there" in said
    assert sample.main([*flags[:-1], str(tmp_path / "whole")]) == 0
    once, again = pictures(tmp_path / "whole"), pictures(out)
    assert once.keys() == again.keys() == {*(f"{i}.png" for i in range(7)), "grid.png"}
    assert all(np.array_equal(once[name], again[name]) for name in once)


def test_other_weights_are_drawn_anew(tmp_path, published, drawn):
    flags = [*published, "--seeds", "0-3", "--out", str(tmp_path / "out")]
    assert sample.main(flags) == 0
    before = pictures(tmp_path / "out")
    drawn.clear()
    assert sample.main(flags) == 0
    assert drawn == []
    module = tiny(Generator, 3)
    module.conv_out.bias.data += 0.3
    save(tmp_path, module)
    assert sample.main(flags) == 0
    assert drawn == [0, 1, 2, 3]
    after = pictures(tmp_path / "out")
    assert not any(np.array_equal(before[name], after[name]) for name in before)


def test_a_full_disk_is_named_and_loses_nothing(tmp_path, published, drawn, monkeypatch, capsys):
    out = tmp_path / "out"
    flags = [*published, "--seeds", "0-5", "--out", str(out)]
    write = Image.Image.save

    def full(self, path, *rest):
        if path.name == ".3.png.tmp":
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        write(self, path, *rest)

    monkeypatch.setattr(Image.Image, "save", full)
    assert sample.main(flags) == 1
    assert "3.png could not be written: No space left on device" in capsys.readouterr().err
    assert names(out) == ["0.png", "1.png", "2.png", "samples.json"]
    monkeypatch.setattr(Image.Image, "save", write)
    drawn.clear()
    assert sample.main(flags) == 0
    assert drawn == [3, 4, 5]


def test_grids_and_earlier_samples_are_not_counted(tmp_path, published):
    out = tmp_path / "out"
    for seeds, count in (("0-7", 8), ("0-3", 4), ("6,9", 2)):
        assert sample.main([*published, "--seeds", seeds, "--out", str(out)]) == 0
        assert len(open_images(out, 8)) == count
    assert len(pictures(out)) == 10
    assert sample.main([*published, "--seeds", "0-3", "--out", str(out), "--no-images"]) == 0
    assert len(open_images(out, 8)) == 2


def test_the_grid_shows_the_first(tmp_path, published, monkeypatch):
    monkeypatch.setattr(sample, "GRID_OF", 4)
    assert sample.main([*published, "--seeds", "0-6", "--out", str(tmp_path / "a")]) == 0
    assert sample.main([*published, "--seeds", "0-3", "--out", str(tmp_path / "b")]) == 0
    assert np.array_equal(
        pictures(tmp_path / "a")["grid.png"], pictures(tmp_path / "b")["grid.png"]
    )


@pytest.mark.parametrize(("flags", "said"), [
    (["--seeds", "3-1"], 'seeds must be like "0-63"'),
    (["--seeds", "0-99999999999"], "at most 10000000"),
    (["--seeds", "9223372036854775808"], "seeds must be below 2^63"),
    (["--out", "netG.pth"], "out must be a folder, got the file"),
])  # fmt: skip
def test_bad_input(tmp_path, published, monkeypatch, capsys, flags, said):
    monkeypatch.chdir(tmp_path)
    assert sample.main([*published, *flags]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("changes", [{"beta_max": 10.0}, {"beta_min": 0.5}])
def test_published_schedules_are_followed(tmp_path, published, changes):
    module = tiny(Generator, 3)
    for name, more in (("a", {}), ("b", {"beta_min": 0.1, "beta_max": 20}), ("c", changes)):
        save(tmp_path, module, **more)
        assert sample.main([*published, "--seeds", "0", "--out", str(tmp_path / name)]) == 0
    a, b, c = (pictures(tmp_path / name)["0.png"] for name in "abc")
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


@pytest.mark.parametrize(("changes", "said"), [
    ({"use_geometric": True}, "option use_geometric must be False, got True"),
    ({"beta_max": "20"}, "option beta_max must be a number in 0..50, got '20'"),
    ({"beta_max": 0.05}, "beta_min and beta_max must be 0 <= beta_min <= beta_max"),
    ({"num_timesteps": 2.5}, "option num_timesteps must be an integer"),
    ({"num_timesteps": 9}, "num_steps must be in 1..8, got 9"),
])  # fmt: skip
def test_schedules_that_are_not_known_are_refused(tmp_path, published, capsys, changes, said):
    save(tmp_path, tiny(Generator, 3), **changes)
    assert sample.main([*published, "--out", str(tmp_path / "a")]) == 1
    assert said in capsys.readouterr().err
