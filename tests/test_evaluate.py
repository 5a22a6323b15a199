"""The evaluate command, end to end on small sets with a network of random weights."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from lddgan_kernels.evaluate import main
from lddgan_kernels.metrics import (
    FeatureNetwork,
    extract_features,
    feature_statistics,
    frechet_distance,
    kernel_distance,
    load_features,
    precision_recall,
)
from lddgan_kernels.metrics.efficientnet import EfficientNetLite0
from lddgan_kernels.trainer import config_file, feature_store, files, networks
from lddgan_kernels.trainer.folder import RunFolder
from lddgan_kernels.trainer.network_files import load_system
from tests.trainer.test_distributed import join, spawn


@pytest.fixture
def sets(tmp_path):
    """12 real images in an npz, 12 fake ones in a folder, weights."""
    rng = np.random.default_rng(0)
    real = rng.integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    fake = rng.integers(0, 128, (12, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "real.npz", x=real)
    (tmp_path / "fake").mkdir()
    for i, pixels in enumerate(fake):
        Image.fromarray(pixels).save(tmp_path / "fake" / f"{i:02}.png")
    torch.save(EfficientNetLite0().state_dict(), tmp_path / "w.pth")
    network = load_features(tmp_path / "w.pth")
    features = [
        extract_features(network, [torch.from_numpy(x).permute(0, 3, 1, 2)]) for x in (real, fake)
    ]
    return tmp_path, features


def arguments(folder, **changes):
    options = {
        "real": folder / "real.npz",
        "fake": folder / "fake",
        "resolution": 16,
        "features": folder / "w.pth",
        "out": folder / "out" / "scores.json",
        "batch-size": 5,
        "device": "cpu",
        **changes,
    }
    return [part for name, value in options.items() for part in (f"--{name}", str(value))]


def test_figures_equal_the_metrics(sets, capsys):
    folder, (real, fake) = sets
    assert main(arguments(folder)) == 0
    figures = json.loads((folder / "out" / "scores.json").read_text())
    assert figures["frechet_distance"] == pytest.approx(frechet_distance(real, fake), rel=1e-3)
    assert (figures["precision"], figures["recall"]) == precision_recall(real, fake)
    assert (figures["real"]["count"], figures["fake"]["count"]) == (12, 12)
    printed = capsys.readouterr().out
    assert "real: 12 images in" in printed
    assert "warning: 12 images are fewer than the 1280 features of efficientnet-lite0" in printed
    assert "equal numbers" not in printed
    assert f"about {figures['frechet_bias']:.4g} of it is bias" in printed
    assert "8 bits a channel, then bilinear to 96 px, antialiased" in printed
    assert figures["environment"]["PyTorch"] == torch.__version__
    assert {"kernel_distance", "density", "coverage"} <= set(figures)
    assert not (folder / "out" / "scores.parts").exists()


def test_unequal_counts_warn_and_skipped_images_do_not_count(sets, capsys):
    folder, (real, fake) = sets
    (folder / "fake" / "03.png").write_bytes(b"broken")
    assert main(arguments(folder)) == 0
    figures = json.loads((folder / "out" / "scores.json").read_text())
    kept = torch.arange(12) != 3
    assert figures["frechet_distance"] == pytest.approx(
        frechet_distance(real, fake[kept]), rel=1e-3
    )
    assert figures["fake"]["count"] == 11
    printed = capsys.readouterr().out
    assert "warning: Frechet distances compare at equal numbers of images only" in printed
    assert "skipped 03.png: cannot identify image file" in printed


def test_statistics_stand_for_a_set(sets):
    folder, (real, fake) = sets
    mu, sigma = feature_statistics(real)
    np.savez(folder / "stats.npz", mu=mu.numpy(), sigma=sigma.numpy())
    assert main(arguments(folder, real=folder / "stats.npz")) == 0
    figures = json.loads((folder / "out" / "scores.json").read_text())
    assert figures["frechet_distance"] == pytest.approx(frechet_distance(real, fake), rel=1e-3)
    assert "precision" not in figures


def evaluate_one(rank, port, flags):
    join(rank, port)
    torch.set_num_threads(1)
    feature_store.PART = 5
    assert main(flags) == 0


def write_run(folder, options=""):
    """A run in `folder` that was not trained, on the images `real.npz` there."""
    config = config_file.parse(
        f"""
        data = "{folder / "real.npz"}"
        codec = "none"
        {options}
        [images]
        resolution = 16
        [diffusion]
        num_steps = 1
        [generator]
        base_channels = 16
        channel_multipliers = [1, 2]
        num_blocks = 1
        """
    )
    run = RunFolder(folder / "run")
    module = networks.build_generator(config)
    files.save_weights(run.generator, module, {"config": config_file.dump(config)})
    return run


def test_a_run_is_compared_with_its_images(sets, monkeypatch):
    folder, (real, _) = sets
    monkeypatch.setattr(feature_store, "PART", 5)
    torch.set_num_threads(1)
    run = write_run(folder)
    out = folder / "run.json"
    flags = ["--run", folder / "run", "--features", folder / "w.pth", "--out", out]
    small = ["--batch-size", 5, "--device", "cpu"]
    assert main([str(flag) for flag in [*flags, *small, "--repeat", 2]]) == 0
    images = load_system(run.generator, "cpu")(torch.arange(12))
    fake = extract_features(load_features(folder / "w.pth"), [images])
    figures = json.loads(out.read_text())
    assert (figures["real"]["count"], figures["fake"]["count"]) == (12, 12)
    assert figures["resolution"] == 16
    assert figures["frechet_distance"] == pytest.approx(frechet_distance(real, fake), rel=1e-3)
    sampling = figures["sampling"]
    assert (sampling["calls"], sampling["batch"], sampling["repeat"]) == (1, 100, 2)
    assert sampling["seconds_per_batch_least"] <= sampling["seconds_per_batch"]
    assert sampling["memory_mib"] > 0
    # Two processes share the parts; the figures are the same to the bit.
    other = folder / "two.json"
    spawn(evaluate_one, [str(flag) for flag in [*flags[:4], "--out", other, *small]])
    two = json.loads(other.read_text())
    for name in ("sampling", "environment"):
        figures.pop(name), two.pop(name, None)
    assert two == figures


def test_a_run_with_labels_is_judged_by_class(tmp_path, capsys):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "real.npz", x=images, y=np.arange(20) // 10)
    torch.save(EfficientNetLite0().state_dict(), tmp_path / "w.pth")
    run = write_run(tmp_path, "labels = true\nclasses = 2")
    flags = ["--run", tmp_path / "run", "--features", tmp_path / "w.pth", "--device", "cpu"]
    out = ["--out", tmp_path / "run.json", "--repeat", 0, "--batch-size", 5]
    assert main([str(flag) for flag in [*flags, *out]]) == 0
    found = json.loads((tmp_path / "run.json").read_text())["by_class"]
    network = load_features(tmp_path / "w.pth")
    real = extract_features(network, [torch.from_numpy(images).permute(0, 3, 1, 2)])
    samples = load_system(run.generator, "cpu")(torch.arange(20))
    fake = extract_features(network, [samples])
    for label in (0, 1):
        one = found[str(label)]
        wanted = kernel_distance(fake[label::2], real[10 * label : 10 * label + 10]).mean
        assert (one["real"], one["fake"]) == (10, 10)
        assert one["kernel_distance"] == pytest.approx(wanted, rel=1e-3, abs=1e-6)
    assert "class 1, 10 of 10: kernel distance " in capsys.readouterr().out


def test_a_stopped_evaluation_goes_on(sets, monkeypatch):
    folder, _ = sets
    monkeypatch.setattr(feature_store, "PART", 5)
    assert main(arguments(folder)) == 0
    whole = (folder / "out" / "scores.json").read_text()
    forward, seen = FeatureNetwork.forward, []

    def stop(self, images):
        if len(seen) == 4:
            raise KeyboardInterrupt
        seen.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(FeatureNetwork, "forward", stop)
    assert main(arguments(folder)) == 130
    left = list((folder / "out" / "scores.parts").iterdir())
    assert len(left) == 4
    left[0].write_bytes(left[0].read_bytes()[:-9])  # a damaged one is made anew
    monkeypatch.setattr(FeatureNetwork, "forward", lambda *a: seen.append(1) or forward(*a))
    assert main(arguments(folder)) == 0
    assert len(seen) == 4 + 1 + 2
    assert (folder / "out" / "scores.json").read_text() == whole


def test_statistics_of_a_set_stand_for_it(sets, capsys):
    folder, (real, fake) = sets
    (folder / "fake" / "03.png").write_bytes(b"broken")
    flags = ["--features", folder / "w.pth", "--resolution", 16, "--device", "cpu"]
    out = folder / "new" / "stats.npz"
    for name, count in (("fake", 11), ("real.npz", 12)):
        told = ["statistics", "--data", folder / name, "--out", out, *flags, "--batch-size", 5]
        assert main([str(part) for part in told]) == 0
        assert f"statistics of {count} images of 16 px" in capsys.readouterr().out
        with np.load(out) as file:
            assert file["count"] == count
            assert str(file["network"]) == "efficientnet-lite0"
    (folder / "fake" / "03.png").unlink()
    assert main(arguments(folder, real=out)) == 0
    figures = json.loads((folder / "out" / "scores.json").read_text())
    kept = fake[torch.arange(12) != 3]
    assert figures["frechet_distance"] == pytest.approx(frechet_distance(real, kept), rel=1e-3)
    assert "equal numbers" in capsys.readouterr().out
    assert main(arguments(folder, real=out, resolution=8)) == 1
    said = capsys.readouterr().err
    assert "path must be statistics of images of 8 px, got 16 px in" in said
    with np.load(out) as file:
        held = dict(file)
    np.savez(out, **{**held, "network": "inception"})
    assert main(arguments(folder, real=out)) == 1
    assert "got 1280 of inception in" in capsys.readouterr().err


def test_an_empty_set_is_refused(sets, capsys):
    folder, _ = sets
    (folder / "empty").mkdir()
    assert main(arguments(folder, fake=folder / "empty")) == 1
    assert "that holds images, got none in" in capsys.readouterr().err


def test_errors_are_one_line(sets, capsys):
    folder, _ = sets
    assert main(arguments(folder, real=folder / "none")) == 1
    assert "open_images: path must be an existing folder or file" in capsys.readouterr().err
    assert main(arguments(folder, features=folder / "real.npz")) == 1
    assert "load_features: path must be weights" in capsys.readouterr().err
    assert main(arguments(folder, limit=3)) == 1
    assert "evaluate: path must be more than k = 3 images, got 3 in" in capsys.readouterr().err
    assert main(["--features", str(folder / "w.pth")]) == 1
    assert (
        "one of --fake and --run (or --checkpoint, --published) must be" in capsys.readouterr().err
    )
    assert main(["--features", "w.pth", "--fake", "a"]) == 1
    assert "--real and --resolution must be given with --fake" in capsys.readouterr().err
    assert not (folder / "out").exists()
    for name, value in (("k", 0), ("batch-size", 0), ("limit", -1)):
        assert main(arguments(folder, **{name: value})) == 1
        assert f"evaluate: {name.replace('-', '_')} must be at least 1" in capsys.readouterr().err


def test_figures_are_never_lost(sets, capsys, monkeypatch):
    folder, _ = sets
    assert main(arguments(folder, out=folder, features=folder / "none")) == 1
    assert "evaluate: out must be a file, got the folder" in capsys.readouterr().err
    (folder / "file").write_text("")
    assert main(arguments(folder, out=folder / "file" / "a.json", features=folder / "none")) == 1
    assert "evaluate: out must be a file in a folder, got" in capsys.readouterr().err

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    assert main(arguments(folder)) == 1
    printed = capsys.readouterr()
    assert "Frechet distance (efficientnet-lite0) " in printed.out
    assert "scores.json could not be written" in printed.err


def test_statistics_that_do_not_fit_name_their_file(sets, capsys):
    folder, (real, _) = sets
    mu, sigma = (part.numpy() for part in feature_statistics(real))
    np.save(folder / "good.npy", {"mu": mu, "sigma": sigma})
    assert main(arguments(folder, real=folder / "good.npy")) == 0
    np.savez(folder / "other.npz", mu=mu[:9], sigma=sigma[:9, :9])
    np.savez(folder / "nan.npz", mu=mu * np.nan, sigma=sigma)
    capsys.readouterr()
    for name, said in (
        ("other.npz", "1280 features of efficientnet-lite0, got 9"),
        ("nan.npz", "NaN"),
    ):
        assert main(arguments(folder, real=folder / name)) == 1
        error = capsys.readouterr().err
        assert said in error
        assert name in error
    assert main(arguments(folder, fake=folder / "nowhere", features=folder / "w.pth")) == 1
    assert "nowhere" in capsys.readouterr().err


def test_help():
    command = [sys.executable, "-m", "lddgan_kernels.evaluate", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--resolution" in result.stdout
