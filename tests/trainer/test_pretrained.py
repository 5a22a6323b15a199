"""Runs that begin with what others trained: autoencoders, generators, discriminators."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import save_file

from lddgan_kernels.interop import to_published
from lddgan_kernels.interop.autoencoder import autoencoder_to_published
from lddgan_kernels.models import Autoencoder
from lddgan_kernels.trainer import command, files, networks
from lddgan_kernels.trainer.folder import RunFolder
from lddgan_kernels.trainer.network_files import load_autoencoder, load_system
from lddgan_kernels.trainer.pretrained import adopt_autoencoder
from lddgan_kernels.trainer.run import train
from tests.interop.test_diffusers import KL, TINY, write
from tests.trainer.tiny import tiny

ONE = {"epochs": 1}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "out"
    train(tiny(gan=ONE), folder)
    return folder


def stages(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {line["stage"] for line in lines if line["kind"] == "step"}, [
        line["text"] for line in lines if line["kind"] == "note"
    ]


def adopt(path, tmp_path, **changes):
    config = tiny(start={"autoencoder": str(path)}, **changes)
    return adopt_autoencoder(config, RunFolder(tmp_path / "none"), resume=False)


def test_the_autoencoder_of_a_run_is_not_trained_again(first, tmp_path):
    out = tmp_path / "out"
    config = tiny(gan=ONE, autoencoder={"base_channels": 8}, start={"autoencoder": str(first)})
    train(config, out)
    trained, notes = stages(out)
    assert trained == {"gan"}
    assert any(note.startswith(f"autoencoder of {first} (") for note in notes)
    own, theirs = (load_autoencoder(RunFolder(f).autoencoder)[0].state_dict() for f in (out, first))
    assert all(value.equal(theirs[name]) for name, value in own.items() if name != "latent_scale")
    load_system(RunFolder(out).generator, "cpu")
    longer = dataclasses.replace(config, gan=dataclasses.replace(config.gan, epochs=2))
    longer = dataclasses.replace(
        longer, start=dataclasses.replace(config.start, autoencoder="gone")
    )
    train(longer, out, resume=True)  # it has its own by now


def test_published_checkpoints_tell_their_structure(tmp_path):
    for options in ({"codebook_size": 16}, {"codebook_size": 0, "kl": True}):
        config = tiny(autoencoder={**options, "attention_resolutions": (8,), "z_channels": 3})
        module = Autoencoder(networks.autoencoder_config(config))
        state = {f"module.{n}": v for n, v in autoencoder_to_published(module).items()}
        torch.save({"state_dict": state}, tmp_path / "a.ckpt")
        found, loaded = adopt(tmp_path / "a.ckpt", tmp_path)
        assert found.autoencoder == config.autoencoder
        assert loaded.state_dict().keys() == module.state_dict().keys()
        found, larger = adopt(tmp_path / "a.ckpt", tmp_path, images={"resolution": 32})
        assert found.autoencoder.attention_resolutions == (16,)
        assert len(larger.state_dict()) == len(module.state_dict())


def test_a_folder_of_diffusers_trains(tmp_path):
    write(tmp_path / "tiny", TINY)
    config = tiny(
        gan=ONE,
        images={"channels": 3, "resolution": 32},
        start={"autoencoder": str(tmp_path / "tiny")},
    )
    train(config, tmp_path / "out")
    assert stages(tmp_path / "out")[0] == {"gan"}
    system = load_system(RunFolder(tmp_path / "out").generator, "cpu")
    assert system.config.autoencoder.kind == "tiny"
    assert system(torch.arange(2)).shape == (2, 3, 32, 32)


def test_autoencoders_that_do_not_fit_are_named(first, tmp_path):
    def fails(match, path, kind=ValueError, **changes):
        out = tmp_path / "out"
        with pytest.raises(kind, match=match):
            train(tiny(start={"autoencoder": str(path)}, **changes), out)
        assert not out.exists()

    fails("--autoencoder must be there", tmp_path / "gone", FileNotFoundError)
    fails("--autoencoder must be left out for codec none", first, codec="none")
    write(tmp_path / "kl", KL)
    fails("must be for images of 1 channels, got 3 in", tmp_path / "kl")
    (tmp_path / "kl" / "config.json").write_text('{"_class_name": "AutoencoderDC"}')
    fails("must hold one of AutoencoderKL, VQModel", tmp_path / "kl")
    fails("must be a run with an autoencoder, a folder of diffusers", tmp_path)
    torch.save({"encoder.weight": torch.zeros(2)}, tmp_path / "other.ckpt")
    fails("must hold an autoencoder of latent diffusion or taming", tmp_path / "other.ckpt")


def weights(folder):
    return files.load_weights(RunFolder(folder).generator)[0]


def test_a_run_begins_with_the_networks_of_another(first, tmp_path):
    still = {"lr_generator": 0.0, "lr_discriminator": 0.0, **ONE}
    train(tiny(gan=still, start={"init_from": str(first)}), tmp_path / "same")
    trained, _ = stages(tmp_path / "same")
    assert trained == {"gan"}  # with the autoencoder of that run, too
    before, after = weights(first), weights(tmp_path / "same")
    for name, value in before.items():
        torch.testing.assert_close(after[name], value)
    kept = files.load_state(RunFolder(first).state)["state"]["discriminator"]
    state = files.load_state(RunFolder(tmp_path / "same").state)["state"]["discriminator"]
    assert all(value.equal(kept[name]) for name, value in state.items())
    scales = [load_autoencoder(RunFolder(f).autoencoder)[0] for f in (first, tmp_path / "same")]
    assert scales[0].latent_scale.equal(scales[1].latent_scale)


def test_what_does_not_fit_is_named_and_starts_fresh(first, tmp_path):
    config = tiny(gan=ONE, labels=True, generator={"z_dim": 6}, start={"init_from": str(first)})
    train(config, tmp_path / "out")
    notes = " ".join(stages(tmp_path / "out")[1])
    assert "mapping.layers.0.weight starts fresh: (16, 4) instead of (16, 6)" in notes
    assert "mapping.classes.weight starts fresh: it is missing" in notes
    assert "projection.weight starts fresh" in notes
    wrong = tiny(generator={"base_channels": 16}, start={"init_from": str(first)})
    with pytest.raises(ValueError, match="--init-from must hold a generator like that of this run"):
        train(wrong, tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize("together", [True, False])
def test_published_networks_are_trained_on(tmp_path, together):
    config = tiny(
        codec="none", gan={"lr_generator": 0.0, **ONE}, discriminator={"time_embedding": 4}
    )
    torch.manual_seed(7)
    generator, judge = networks.build_generator(config), networks.build_discriminator(config)
    parts = {"netG_dict": to_published(generator), "netD_dict": to_published(judge)}
    start = {"init_from": str(tmp_path / "content.pth")}
    if together:
        torch.save(parts, tmp_path / "content.pth")
    else:
        torch.save(parts["netG_dict"], tmp_path / "content.pth")
        save_file(parts["netD_dict"], tmp_path / "netD.safetensors")
        start["init_discriminator"] = str(tmp_path / "netD.safetensors")
    train(
        dataclasses.replace(config, start=dataclasses.replace(config.start, **start)),
        tmp_path / "out",
    )
    for name, value in weights(tmp_path / "out").items():
        torch.testing.assert_close(value, generator.state_dict()[name])
    notes = " ".join(stages(tmp_path / "out")[1])
    assert notes.count("weights") >= 2
    assert "fresh" not in notes


def test_short_flags():
    options, _ = command.parse(
        "train",
        "",
        ["--autoencoder", "a", "--init-from", "b", "--autoencoder.latent-channels", "3"],
    )
    start = options.config.start
    assert (start.autoencoder, start.init_from) == ("a", "b")
    assert options.config.autoencoder.latent_channels == 3
