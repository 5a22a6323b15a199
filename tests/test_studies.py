"""The studies: trained, judged, stored as they go, and gone on with."""

import dataclasses
import json

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import _study, ablations, trilemma
from lddgan_kernels.trainer import config_file, networks
from tests.trainer.tiny import tiny


@pytest.fixture
def small(monkeypatch):
    """Tiny networks in place of the presets', and no waiting for speeds."""

    real = config_file.load

    def load(preset):
        config = real(preset)
        if preset.endswith(".toml"):
            return config
        kept = {"codec": config.codec, "method": config.method, "diffusion": config.diffusion}
        options = {"kind": config.generator.kind, "z_dim": config.generator.z_dim}
        generator = {**options, "tanh_out": config.generator.tanh_out}
        vae = {"kl": True, "codebook_size": 0} if config.method == "vae" else {}
        ddpm = {"num_steps": 50, "batch_size": 8}
        return tiny(
            **kept, precision="float32", generator=generator, autoencoder=vae, ddpm=ddpm,
            autoencoder_training={"gan_start": None},
        )  # fmt: skip

    monkeypatch.setattr(config_file, "load", load)
    monkeypatch.setattr(_study, "TIMED_SECONDS", 0.0)


def test_all_does_not_train():
    assert not {"ablations", "trilemma"} & set(command.names())


def test_presets_of_the_systems_are_what_they_say():
    methods = {name: config_file.load(digits) for name, (digits, _) in trilemma.SYSTEMS.items()}
    kinds = {name: (config.method, config.codec) for name, config in methods.items()}
    assert kinds["LDDGAN"] == kinds["one-shot GAN"] == ("gan", "autoencoder")
    assert kinds["DDGAN"] == ("gan", "none")
    assert kinds["WDDGAN"] == ("gan", "haar")
    assert kinds["latent diffusion"] == ("ddpm", "autoencoder")
    assert kinds["DDPM"] == ("ddpm", "none")
    assert kinds["VAE"] == ("vae", "autoencoder")
    assert methods["one-shot GAN"].diffusion.num_steps == 1
    one_shot = trilemma._config("one-shot GAN", "cifar10")
    assert one_shot.diffusion.num_steps == 1
    assert one_shot.gan.reconstruction == methods["one-shot GAN"].gan.reconstruction == "none"


@pytest.mark.parametrize("table", ablations.VARIANTS)
def test_the_variants_fit_the_digits(table):
    found = set()
    for changes in ablations.VARIANTS[table].values():
        config = ablations.changed_by(config_file.load("digits"), changes)
        networks.validate(config)
        found.add(config)
    assert len(found) == len(ablations.VARIANTS[table])


def test_a_budget_becomes_epochs(monkeypatch):
    monkeypatch.setattr(_study, "_seconds_a_step", lambda stage, shape: 0.5)
    config = tiny()
    # 5 steps of the autoencoder, then 57.5 s for epochs of 3 steps
    assert _study.within(config, 1.0, 24, "cpu").gan.epochs == 38
    vae = tiny(method="vae", autoencoder={"kl": True, "codebook_size": 0})
    assert _study.within(vae, 1.0, 24, "cpu").autoencoder_training.steps == 120
    long = dataclasses.replace(config.autoencoder_training, steps=1000)
    long = dataclasses.replace(config, autoencoder_training=long)
    found = _study.within(long, 1.0, 24, "cpu")
    assert found.autoencoder_training.steps == 60
    assert found.gan.epochs == 20


@pytest.mark.slow
def test_a_trilemma_goes_on_where_it_was_stopped(tmp_path, small, monkeypatch):
    monkeypatch.setattr(_study, "_seconds_a_step", lambda stage, shape: 0.6)
    monkeypatch.setattr(trilemma, "WAYS", (("dpm++", 3), ("ddpm", 4)))
    monkeypatch.setattr(trilemma, "SYSTEMS", dict(list(trilemma.SYSTEMS.items())[3:6]))
    monkeypatch.setitem(trilemma.SYSTEMS, "LDDGAN", ("digits", "cifar10"))
    flags = ["--out", str(tmp_path), "--minutes", "0.1", "--samples", "12"]
    judged, count = _study.Study.judged, []

    def stop(self, *rest):
        if len(count) == 2:
            raise KeyboardInterrupt
        count.append(1)
        return judged(self, *rest)

    monkeypatch.setattr(_study.Study, "judged", stop)
    with pytest.raises(KeyboardInterrupt):
        trilemma.main(flags)
    first = json.loads((tmp_path / "results.json").read_text())
    assert len(first) == 2
    monkeypatch.setattr(_study.Study, "judged", judged)
    trilemma.main(flags)
    rows = json.loads((tmp_path / "results.json").read_text())
    assert {name: rows[name] for name in first} == first
    assert set(rows) == {
        *("one-shot GAN", "VAE", "latent diffusion, dpm++ 3", "latent diffusion, ddpm 4", "LDDGAN")
    }
    assert all({"frechet", "recall", "coverage", "confident"} <= set(row) for row in rows.values())
    assert rows["latent diffusion, dpm++ 3"]["calls"] == 3
    table = (tmp_path / "trilemma.md").read_text()
    assert "| DDIM | 4.67 | 0.53 | 50 | 4.01 |" in table
    assert "| LDDGAN | 8 |" in table
    if (tmp_path / "trilemma.svg").exists():
        assert "<svg" in (tmp_path / "trilemma.svg").read_text()


def test_ablations_give_mean_and_spread(tmp_path):
    study = _study.Study(tmp_path)
    for seed, value in enumerate((1.0, 2.0)):
        study.rows[f"losses: adversary alone, seed {seed}"] = {"frechet": value}
    ablations.write(study)
    assert (
        "| losses: adversary alone | 2 | 1.5 ± 0.71 | 3.15, 0.58 |"
        in (tmp_path / "ablations.md").read_text()
    )


def test_a_study_of_other_data_needs_features():
    with pytest.raises(ValueError, match="--features must name a feature network"):
        _study.Judge(tiny(data="photos"), None, 10, "cpu")


def test_a_judge_prefers_the_digits():
    judge = _study.Judge(tiny(), None, 100, "cpu")
    from lddgan_kernels.data.digits import load_digits

    real = judge(load_digits("test", 16).images)
    noise = judge(torch.randint(0, 256, (300, 1, 16, 16), dtype=torch.uint8))
    assert real["frechet"] < 0.1 * noise["frechet"]
    assert real["recall"] > 0.5 > noise["recall"]
    assert real["confident"] == pytest.approx(1.0)
