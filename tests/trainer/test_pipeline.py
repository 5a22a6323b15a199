"""Sharing: a run to a folder and a hub, and back."""

import json
import os
import shutil
import socket
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

from lddgan_kernels import sample
from lddgan_kernels.data import read_listed
from lddgan_kernels.diffusion import interpolate
from lddgan_kernels.diffusion import sample as draw
from lddgan_kernels.pipeline import Pipeline
from lddgan_kernels.trainer import networks
from lddgan_kernels.trainer.folder import RunFolder
from lddgan_kernels.trainer.network_files import save_autoencoder, save_generator
from lddgan_kernels.trainer.system import System
from tests.trainer.test_exports import system

SEEDS = torch.tensor([3, 5])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The files of a run that the tests need, its log's last line with scores."""
    folder = RunFolder(tmp_path_factory.mktemp("run") / "out")
    whole = system("lddgan-kl")
    autoencoder = whole.codec.autoencoder
    folder.state.parent.mkdir(parents=True)
    save_autoencoder(whole.config, folder, autoencoder)
    save_generator(whole.config, folder.generator, whole.generator, autoencoder)
    folder.log.write_text('{"scores": {"digits": {"share": 0.5}}}\n{"cut sho')
    return folder.path


def test_a_run_is_saved_and_loaded(run, tmp_path):
    pipeline = Pipeline.from_pretrained(run)
    out = tmp_path / "shared"
    pipeline.save_pretrained(out)
    other = Pipeline.from_pretrained(str(out))
    assert torch.equal(other(SEEDS), pipeline(SEEDS))
    assert other.scores == {"digits": {"share": 0.5}}
    card = (out / "README.md").read_text()
    assert "| digits.share | 0.5 |" in card
    assert 'Pipeline.from_pretrained("shared")' in card
    with Image.open(out / "samples.png") as picture:
        assert picture.size[0] > 64
    other.save_pretrained(out)  # over its own
    (out / "mine.txt").write_text("kept")
    with pytest.raises(FileExistsError, match=r"new or empty one, got .*, which holds mine.txt"):
        other.save_pretrained(out)


def test_classes_and_guidance(tmp_path):
    whole = system("ddgan-labels")
    folder = RunFolder(tmp_path / "run")
    save_generator(whole.config, folder.generator, whole.generator, None)
    Pipeline.from_pretrained(folder.path).save_pretrained(tmp_path / "shared")
    pipeline = Pipeline.from_pretrained(tmp_path / "shared", guidance=1.5)
    labels = torch.tensor([2, 0])
    assert torch.equal(pipeline(SEEDS, labels=labels), whole(SEEDS, labels=labels))
    assert not torch.equal(pipeline(SEEDS, labels=labels), pipeline(SEEDS, labels=1 - labels // 2))
    assert torch.equal(pipeline(SEEDS), pipeline(SEEDS, labels=SEEDS % 3))
    for wrong, told in (([2, 3], "in 0..2, got 3"), ([1], r"of shape \(2,\), got \(1,\)")):
        with pytest.raises(ValueError, match=f"sample: labels must be {told}"):
            pipeline(SEEDS, labels=torch.tensor(wrong))
    with pytest.raises(ValueError, match="guidance must be a finite number, got nan"):
        Pipeline.from_pretrained(tmp_path / "shared", guidance=float("nan"))
    for parameter in pipeline.system.generator.parameters():
        parameter.data.fill_(float("nan"))
    with pytest.raises(ValueError, match=f"finite, got inf or NaN of seed {SEEDS[0]}"):
        pipeline(SEEDS, labels=labels)
    plain = System(*(getattr(system("ddgan"), name) for name in ("config", "generator", "codec")))
    with pytest.raises(ValueError, match="labels must be None where there are no classes"):
        plain(SEEDS, labels=labels)


def test_hub(run, tmp_path, monkeypatch):
    uploaded = {}

    def upload_folder(*, repo_id, folder_path, token, commit_message):
        uploaded[repo_id] = tmp_path / "hub"
        shutil.copytree(folder_path, uploaded[repo_id])
        return "https://hub/commit"

    def snapshot_download(repo_id, *, revision, token, allow_patterns):
        assert "generator.safetensors" in allow_patterns
        return str(uploaded[repo_id])

    fake = types.SimpleNamespace(
        create_repo=lambda *args, **options: uploaded.setdefault("made", options),
        upload_folder=upload_folder,
        snapshot_download=snapshot_download,
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    pipeline = Pipeline.from_pretrained(run)
    assert pipeline.push_to_hub("me/digits", private=True) == "https://hub/commit"
    assert uploaded["made"]["private"]
    other = Pipeline.from_pretrained("me/digits")
    assert torch.equal(other(SEEDS), pipeline(SEEDS))
    assert '"me/digits"' in (tmp_path / "hub" / "README.md").read_text()
    assert json.loads((tmp_path / "hub" / "scores.json").read_text())["digits"]


def test_errors(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match='must be a folder, or "owner/name" on the hub'):
        Pipeline.from_pretrained(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="source must hold generator.safetensors"):
        Pipeline.from_pretrained(tmp_path)
    for text in ("{", "[]", "[" * 200_000):
        (tmp_path / "generator.safetensors").touch()
        (tmp_path / "scores.json").write_text(text)
        with pytest.raises(ValueError, match="scores.json must"):
            Pipeline.from_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"pip install 'lddgan_kernels\[hub\]'"):
        Pipeline.from_pretrained("owner/name")


def test_interpolation_meets_the_samples_at_its_ends():
    whole = system("ddgan")
    config = whole.config
    schedule, shape = networks.build_schedule(config, "cpu"), networks.latent_shape(config)
    options = {"z_dim": config.generator.z_dim, "memory_format": torch.channels_last}
    ends = draw(whole.generator, schedule, shape, SEEDS, **options)
    fractions = torch.tensor([0.0, 1.0, 0.5])
    found = interpolate(
        *(whole.generator, schedule, shape, SEEDS[:1].repeat(3), SEEDS[1:].repeat(3), fractions),
        **options,
    )
    torch.testing.assert_close(found[:2], ends, rtol=1e-4, atol=1e-4)
    assert (found[2] - found[0]).abs().max() > 1e-2
    with pytest.raises(ValueError, match=r"fractions must be in \[0, 1\], got \[2.0\]"):
        interpolate(
            whole.generator, schedule, shape, SEEDS[:1], SEEDS[1:], torch.tensor([2.0]), **options
        )


def test_processes_share_the_seeds(run, tmp_path):
    arguments = ["--run", str(run), "--seeds", "0-4", "--batch-size", "2", "--device", "cpu"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "lddgan_kernels.sample", *arguments, "--out", tmp_path / "two"],
            env={**os.environ, **meeting, "WORLD_SIZE": "2", "RANK": str(i), "LOCAL_RANK": str(i)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    told = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert "5 samples -> " in told[0]
    assert not told[1]
    assert sample.main([*arguments, "--out", str(tmp_path / "one")]) == 0
    for one in (tmp_path / "one").glob("*.png"):
        with Image.open(one) as expected, Image.open(tmp_path / "two" / one.name) as found:
            levels = [np.asarray(picture).astype(int) for picture in (expected, found)]
            assert abs(levels[0] - levels[1]).max() <= 1
    assert read_listed(tmp_path / "two")["pictures"] == read_listed(tmp_path / "one")["pictures"]


@pytest.mark.parametrize("format", ["webp", "gif", "png"])
def test_animation(format, run, tmp_path, capsys):
    arguments = ["--run", str(run), "--seeds", "0-1", "--frames", "3", "--out", str(tmp_path)]
    arguments += ["--device", "cpu", "--animation", format]
    assert sample.main(arguments) == 0
    assert "6 frames -> " in capsys.readouterr().out
    with Image.open(tmp_path / f"animation.{format}") as picture:
        assert picture.n_frames == 6
        assert picture.info["loop"] == 0
    assert sample.main([*arguments, "--seeds", "4"]) == 1
    assert "animation: seeds must be at least two, got [4]" in capsys.readouterr().err
