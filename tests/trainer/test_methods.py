"""What is no GAN: networks that predict noise, in pixels and latents, and the VAE."""

import dataclasses
import json

import pytest
import torch

from lddgan_kernels import sample
from lddgan_kernels.trainer import config_file, files, networks
from lddgan_kernels.trainer.diffusion_stage import DiffusionStage
from lddgan_kernels.trainer.folder import RunFolder
from lddgan_kernels.trainer.log import RunLog
from lddgan_kernels.trainer.model_report import model_report
from lddgan_kernels.trainer.network_files import load_system
from lddgan_kernels.trainer.run import train
from tests.trainer.tiny import tiny


def tiny_ddpm(**changes):
    ddpm = {"epochs": 3, "batch_size": 8, "sample_steps": 4} | changes.pop("ddpm", {})
    return tiny(method="ddpm", generator={"z_dim": 0, "tanh_out": False}, ddpm=ddpm, **changes)


def tiny_vae():
    return tiny(method="vae", autoencoder={"kl": True, "codebook_size": 0})


def weights(folder):
    return files.load_weights(folder / "checkpoints/generator.safetensors")[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddpm") / "run"
    train(tiny_ddpm(codec="none"), folder)
    return folder


def test_a_killed_ddpm_goes_on_bit_for_bit(finished, tmp_path, monkeypatch):
    step = RunLog.step

    def kill(self, name, done, *rest):
        step(self, name, done, *rest)
        if done > 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunLog, "step", kill)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_ddpm(codec="none"), tmp_path / "run")
    monkeypatch.undo()
    assert files.load_state(tmp_path / "run/checkpoints/last.pt")["step"] == 3
    config = tiny_ddpm(codec="none", ddpm={"sampler": "heun"})  # may be another
    train(config, tmp_path / "run", resume=True)
    ours, wanted = weights(tmp_path / "run"), weights(finished)
    assert all(ours[name].equal(wanted[name]) for name in wanted)


def test_a_ddpm_has_samplers(finished, tmp_path, capsys):
    generator = RunFolder(finished).generator
    seeds = torch.arange(3)
    drawn = {}
    for name, steps, calls in (("ddpm", 10, 10), ("ddim", 10, 10), ("heun", 5, 9), ("dpm++", 7, 7)):
        system = load_system(generator, "cpu", sampler=name, steps=steps)
        assert system.calls == calls
        drawn[name] = system(seeds, 2)
        assert drawn[name].shape == (3, 1, 16, 16)
    assert not drawn["ddpm"].equal(drawn["ddim"])
    assert load_system(generator, "cpu").calls == 4
    flags = ["--run", str(finished), "--out", str(tmp_path / "out"), "--seeds", "0-2"]
    flags += ["--device", "cpu"]
    assert sample.main([*flags, "--sampler", "dpm++", "--steps", "7"]) == 0
    assert "3 samples" in capsys.readouterr().out
    assert sample.main([*flags, "--sampler", "dpm++", "--steps", "8"]) == 0
    assert "were there" not in capsys.readouterr().out  # they are another system's
    assert sample.main([*flags, "--steps", "1001"]) == 1
    assert "sample: steps must be in 1..1000, got 1001" in capsys.readouterr().err


def test_the_log_and_pictures_of_a_ddpm(finished):
    lines = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in lines if line["kind"] == "step"} == {"ddpm"}
    assert all(line["noise"] > 0 for line in lines if line["kind"] == "step")
    names = {path.name for path in (finished / "samples").iterdir()}
    steps = {f"step-000000{step}.png" for step in (4, 8, 9)}
    assert names == steps | {"path.png", "neighbours.png"}


def test_latent_diffusion_trains_on_an_autoencoder(tmp_path):
    summary = train(tiny_ddpm(ddpm={"epochs": 1}), tmp_path / "run")
    assert "reconstruction_l1" in summary["scores"]
    assert load_system(RunFolder(tmp_path / "run").generator, "cpu")(torch.arange(2)).shape[0] == 2


def test_a_ddpm_learns():
    """Images of one value: the noise is then known, and found."""
    config = tiny_ddpm(
        codec="none",
        precision="float32",
        images={"resolution": 8},
        ddpm={"lr": 3e-3, "epochs": 120},
    )

    class Batches:
        steps_per_epoch = 1

    stage = DiffusionStage(config, Batches(), torch.device("cpu"))
    losses = [stage.step(i, torch.full((8, 1, 8, 8), 0.5))["noise"] for i in range(120)]
    assert sum(losses[:10]) / 10 > 0.8
    assert sum(losses[-30:]) / 30 < 0.5


def test_a_vae_samples_from_its_prior(tmp_path):
    folder = tmp_path / "run"
    summary = train(tiny_vae(), folder)
    assert summary["parameters"] > 0
    assert (folder / "samples/step-0000005.png").exists()
    assert not RunFolder(folder).generator.exists()
    system = load_system(RunFolder(folder).generator, "cpu")
    assert system.calls == 1
    images = system(torch.arange(5), 2)
    assert images.shape == (5, 1, 16, 16)
    assert not images[0].equal(images[1])
    with pytest.raises(ValueError, match="--sampler and --steps must be left out for method vae"):
        load_system(RunFolder(folder).generator, "cpu", sampler="ddim")
    train(tiny_vae(), folder, resume=True)


def test_the_kl_weight_counts():
    from lddgan_kernels.trainer.autoencoder_stage import AutoencoderStage

    def extra(weight):
        config = dataclasses.replace(
            tiny_vae(),
            precision="float32",
            autoencoder_training=dataclasses.replace(
                tiny_vae().autoencoder_training, kl_weight=weight, gan_start=None
            ),
        )

        class Batches:
            steps_per_epoch = 1

        stage = AutoencoderStage(config, Batches(), torch.device("cpu"), None)
        metrics = stage.step(0, torch.zeros(8, 1, 16, 16))
        return (metrics["loss"] - metrics["l1"]).item(), metrics["extra"].item()

    added, term = extra(0.5)
    assert added == pytest.approx(0.5 * term, rel=1e-3)
    assert extra(0.0)[0] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("preset", "networks", "sample"),
    [
        ("digits-ldm", ["generator", "encoder", "decoder"], "50 calls of the generator and one of"),
        ("ddpm-cifar10", ["generator"], "50 calls of the generator"),
        ("digits-vae", ["encoder", "decoder"], "one of the decoder"),
    ],
)
def test_what_they_cost_is_reported(preset, networks, sample):
    lines = model_report(preset)
    names = [line.split()[0] for line in lines[3 : 3 + len(networks)]]
    assert names == networks
    assert any(line.startswith("a sample: ") and sample in line for line in lines)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "ddpm"}, "generator.z_dim must be 0 for method ddpm, got 4"),
        (
            {"method": "ddpm", "generator": {"z_dim": 0}},
            "generator.tanh_out must be False for method ddpm, got True",
        ),
        ({"generator": {"z_dim": 0}}, "generator.z_dim must be positive for method gan, got 0"),
        ({"method": "vae"}, "autoencoder.kl must be set, and codec autoencoder, for method vae"),
        ({"method": "gen"}, "method must be one of gan, ddpm, vae, got 'gen'"),
    ],
)
def test_methods_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        networks.validate(tiny(**changes))


def test_samplers_that_do_not_fit():
    with pytest.raises(ValueError, match="config: steps must be in 1..1000, got 1001"):
        networks.validate(tiny_ddpm(ddpm={"sample_steps": 1001}))
    with pytest.raises(ValueError, match="ddpm.sampler must be one of ddpm, ddim, heun, dpm"):
        config_file.parse('[ddpm]\nsampler = "euler"')
