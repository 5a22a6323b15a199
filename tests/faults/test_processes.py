"""A process of a run that dies: the others end with a sentence, and the run goes on from there."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lddgan_kernels import train
from lddgan_kernels.data import images
from lddgan_kernels.trainer import config_file, files, run
from tests.faults import runs

ROOT = Path(__file__).parents[2]


def torchrun(*arguments):
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    return subprocess.run(
        [*launcher, str(ROOT / "tests/faults/rank.py"), *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a run of two processes that meets no fault ends with."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    done = torchrun(folder)
    assert done.returncode == 0, done.stderr
    return runs.results(folder)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_dies(whole, tmp_path, rank):
    folder = tmp_path / "run"
    done = torchrun(folder, rank)
    assert done.returncode != 0
    told = "error: train: another process of this run has ended or can't be reached; --resume"
    assert done.stderr.count(told) == 1
    state = files.load_state(folder / "checkpoints/last.pt")
    assert (state["stage"], state["step"]) == ("gan", 2)
    done = torchrun(folder)
    assert done.returncode == 0, done.stderr
    runs.assert_same(folder, whole)


@pytest.mark.parametrize("moment", ["decoding", "training"])
def test_a_data_worker_that_is_killed(tmp_path, monkeypatch, capsys, moment):
    folder, load = tmp_path / "run", images.ImageDataset._load

    def dying(self, index):
        begun = moment == "decoding" or (folder / "checkpoints/last.pt").exists()
        if begun and torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return load(self, index)

    monkeypatch.setattr(images.ImageDataset, "_load", dying)
    if moment == "training":  # as for a set that is too large to be kept decoded
        monkeypatch.setattr(run, "cache_pixels", lambda dataset, workers: dataset)
    preset = tmp_path / "tiny.toml"
    preset.write_text(config_file.dump(runs.CONFIG))
    arguments = ["--preset", str(preset), "--out", str(folder), "--images.workers"]
    assert train.main([*arguments, "1"]) == 1
    told = capsys.readouterr().err
    assert "error: a process that reads images has died (DataLoader worker (pid" in told
    assert "Traceback" not in told
    resume = ["--resume"] * (moment == "training")
    assert train.main([*arguments, "0", *resume]) == 0
    assert runs.results(folder)
