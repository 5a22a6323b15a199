"""Classes from the data to the samples."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from lddgan_kernels import sample
from lddgan_kernels.data import open_images
from lddgan_kernels.trainer import config_file, files, networks
from lddgan_kernels.trainer.batches import ImageBatches, LatentBatches, open_dataset
from lddgan_kernels.trainer.folder import RunFolder
from lddgan_kernels.trainer.gan_stage import GanStage
from lddgan_kernels.trainer.network_files import load_system
from lddgan_kernels.trainer.run import train
from tests.trainer.tiny import tiny


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "out"
    train(tiny(labels=True), folder)
    return folder


def generator_of(folder):
    return files.load_weights(RunFolder(folder).generator)[0]


def shake(system):
    """So few updates leave the last layers near 0."""
    torch.manual_seed(0)
    for parameter in system.generator.parameters():
        parameter += 0.1 * torch.randn_like(parameter)


def test_a_run_learns_the_classes_of_its_data(finished):
    config = config_file.load(str(finished / "config.toml"))
    assert (config.labels, config.classes) == (True, 10)
    assert generator_of(finished)["mapping.classes.weight"].shape == (11, 16)
    system = load_system(RunFolder(finished).generator, "cpu")
    shake(system)
    seeds = torch.tensor([3, 14])
    assert system(seeds).equal(system(seeds, labels=torch.tensor([3, 4])))
    assert not system(seeds).equal(system(seeds, labels=torch.tensor([4, 4])))
    guided = load_system(RunFolder(finished).generator, "cpu", guidance=3.0)
    shake(guided)
    assert not system(seeds).equal(guided(seeds))


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(finished, tmp_path, monkeypatch):
    out = tmp_path / "out"
    step = GanStage.step

    def stop(self, index, *batch):
        if index == 4:
            raise KeyboardInterrupt
        return step(self, index, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(GanStage, "step", stop)
        with pytest.raises(KeyboardInterrupt):
            train(tiny(labels=True), out)
    with pytest.raises(ValueError, match="--resume must keep .* label_dropout: 0.1 -> 0.5"):
        train(tiny(labels=True, label_dropout=0.5), out, resume=True)
    train(tiny(labels=True), out, resume=True)
    before, after = generator_of(finished), generator_of(out)
    assert all(value.equal(after[name]) for name, value in before.items())


def test_noise_is_predicted_by_class(tmp_path):
    config = tiny(
        labels=True, codec="none", method="ddpm", generator={"z_dim": 0, "tanh_out": False}
    )
    config = dataclasses.replace(config, ddpm=dataclasses.replace(config.ddpm, epochs=1))
    train(config, tmp_path / "out")
    system = load_system(RunFolder(tmp_path / "out").generator, "cpu", sampler="ddim", steps=2)
    shake(system)
    seeds = torch.tensor([3, 14])
    assert system(seeds).equal(system(seeds, labels=torch.tensor([3, 4])))
    assert not system(seeds).equal(system(seeds, labels=torch.tensor([4, 4])))


@pytest.mark.parametrize("codec", ["none", "haar"])
def test_pixels_and_wavelets(tmp_path, codec):
    train(tiny(labels=True, codec=codec, gan={"epochs": 1}), tmp_path / "out")
    assert "mapping.classes.weight" in generator_of(tmp_path / "out")


def test_labels_go_with_their_images():
    config = tiny(labels=True, classes=10)
    dataset = open_dataset(config)
    batches = ImageBatches(dataset, config, 8, labels=True)
    pictures = torch.stack([dataset[i] for i in range(24)]).float() / 127.5 - 1

    class Cache:
        stand_ins = ((0, 5),)

        def __len__(self):
            return 24

        def batches(self, *args, **options):
            return (x.clone() for x, _ in batches.epoch(1, 0))

    stored = LatentBatches(Cache(), 1.0, config, dataset.labels)
    for (x, y), (_, z) in zip(batches.epoch(1, 0), stored.epoch(1, 0), strict=True):
        which = [int((pictures - one).abs().sum((1, 2, 3)).argmin()) for one in x]
        assert y.equal(dataset.labels[which])
        assert z.equal(dataset.labels[[5 if i == 0 else i for i in which]])


def test_labels_are_dropped_alike_for_real_and_drawn(monkeypatch):
    config = tiny(labels=True, classes=10, codec="none", gan={"accumulate": 2}, label_dropout=0.5)
    batches = ImageBatches(open_dataset(config), config, 8, labels=True)
    stage = GanStage(config, batches, torch.device("cpu"))
    seen = {"generator": [], "discriminator": []}
    for name, calls in seen.items():
        getattr(stage, name).register_forward_pre_hook(
            lambda module, given, calls=calls: calls.append(given[-1])
        )
    x, labels = next(batches.epoch(0, 0))
    stage.step(0, x, labels)
    drawn = seen["generator"]
    judged = [seen["discriminator"][i] for i in (0, 2, 4, 5)]
    assert [a.tolist() for a in drawn] == [a.tolist() for a in judged]
    assert seen["discriminator"][1].equal(judged[0])
    for part, kept in zip(drawn, [*labels.chunk(2)] * 2, strict=True):
        assert ((part == kept) | (part == -1)).all()
    flat = torch.cat(drawn)
    assert 0 < (flat == -1).sum() < len(flat)


def test_data_without_labels_is_named(tmp_path):
    x = np.zeros((24, 16, 16), np.uint8)
    np.savez(tmp_path / "a.npz", x=x)
    with pytest.raises(ValueError, match="data must have a class for each image .* none in"):
        train(tiny(labels=True, data=str(tmp_path / "a.npz")), tmp_path / "out")
    np.savez(tmp_path / "b.npz", x=x, y=np.arange(24) - 1)
    with pytest.raises(ValueError, match=r"labels must be in 0..22, got -1 in"):
        train(tiny(labels=True, data=str(tmp_path / "b.npz")), tmp_path / "out")
    with pytest.raises(ValueError, match=r"labels must be in 0..3, got [4-9] in the embedded"):
        train(tiny(labels=True, classes=4), tmp_path / "out")
    with pytest.raises(ValueError, match="config: classes must be 0 without labels, got 4"):
        train(tiny(classes=4), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_resuming_with_other_labels_is_refused(tmp_path):
    x = np.random.default_rng(0).integers(0, 255, (8, 16, 16), np.uint8)
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(8))
    config = tiny(labels=True, codec="none", data=str(tmp_path / "a.npz"), gan={"epochs": 1})
    train(config, tmp_path / "out")
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(8)[::-1])
    with pytest.raises(ValueError, match="--resume must find the labels that the run began with"):
        train(config, tmp_path / "out", resume=True)


def test_sample_draws_classes(finished, tmp_path, capsys):
    out = tmp_path / "out"
    flags = ["--run", str(finished), "--seeds", "0-1", "--out", str(out), "--device", "cpu"]
    assert sample.main([*flags, "--classes", "3,5"]) == 0
    found = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png"))
    assert found == ["3/0.png", "3/1.png", "5/0.png", "5/1.png", "grid.png"]
    assert open_images(out, 16).labels.tolist() == [3, 3, 5, 5]
    assert sample.main([*flags, "--classes", "3,5"]) == 0
    assert "4 were there" in capsys.readouterr().out
    assert sample.main([*flags, "--classes", "3,5", "--guidance", "1"]) == 0
    assert "were there" not in capsys.readouterr().out
    assert sample.main([*flags, "--classes", "3,10"]) == 1
    assert "classes must be in 0..9, got 10" in capsys.readouterr().err
    listed = json.loads((out / "samples.json").read_text())
    assert listed["pictures"] == found[:-1]


def test_a_run_without_classes_has_none_to_draw(tmp_path, capsys):
    config = tiny(codec="none", gan={"epochs": 1})
    train(config, tmp_path / "run")
    flags = ["--run", str(tmp_path / "run"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert sample.main([*flags, "--classes", "3"]) == 1
    assert "classes must be left out for a run without labels" in capsys.readouterr().err
    assert sample.main([*flags, "--guidance", "1"]) == 1
    assert "guidance must be 0 for a run without classes" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert networks.generator_config(config).classes == 0
