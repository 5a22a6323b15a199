import errno
import os

import pytest
import torch
from torch import nn

from lddgan_kernels.trainer import files


def test_state_comes_back(tmp_path):
    state = {"step": 3, "net": {"w": torch.randn(2, 3)}, "list": [torch.arange(3), "a", 1.5]}
    files.save_state(tmp_path / "a" / "last.pt", state)
    found = files.load_state(tmp_path / "a" / "last.pt")
    assert found["step"] == 3
    assert found["net"]["w"].equal(state["net"]["w"])
    assert found["list"][0].equal(state["list"][0])
    assert os.listdir(tmp_path / "a") == ["last.pt"]


@pytest.mark.parametrize("fails", ["write", "fsync", "replace"])
def test_a_failed_write_keeps_what_was_there(tmp_path, monkeypatch, fails):
    path = tmp_path / "last.pt"
    files.save_state(path, {"step": 1})

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    module, name = {"write": (torch, "save"), "fsync": (os, "fsync"), "replace": (os, "replace")}[
        fails
    ]
    monkeypatch.setattr(module, name, full)
    with pytest.raises(OSError, match="no space left on the disk; the file there before is kept"):
        files.save_state(path, {"step": 2})
    monkeypatch.undo()
    assert files.load_state(path)["step"] == 1
    assert os.listdir(tmp_path) == ["last.pt"]


def test_a_really_full_disk(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")

    (tmp_path / "last.pt.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match="could not be written: no space left on the disk"):
        files.save_state(tmp_path / "last.pt", {"w": torch.zeros(100_000)})
    assert not os.listdir(tmp_path)


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "last.pt"
    with pytest.raises(FileNotFoundError, match="must be an existing file"):
        files.load_state(path)
    with pytest.raises(FileNotFoundError, match="must be an existing file"):
        files.load_weights(path)
    files.save_state(path, {"w": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match="must be a whole training state"):
        files.load_state(path)
    with pytest.raises(ValueError, match="must be whole safetensors"):
        files.load_weights(path)


def test_code_in_a_checkpoint_does_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/ran",)

    torch.save({"step": Evil()}, tmp_path / "last.pt")
    with pytest.raises(ValueError, match="must be a whole training state"):
        files.load_state(tmp_path / "last.pt")
    assert not (tmp_path / "ran").exists()


def test_weights_carry_facts(tmp_path):
    module = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)
    files.save_weights(tmp_path / "w.safetensors", module, {"config": "seed = 1\n", "n": 2})
    tensors, facts = files.load_weights(tmp_path / "w.safetensors")
    assert facts == {"config": "seed = 1\n", "n": 2}
    assert all(tensors[name].equal(value) for name, value in module.state_dict().items())
