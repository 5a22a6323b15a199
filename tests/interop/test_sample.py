"""`sample --published` draws what the module itself would."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from lddgan_kernels import evaluate, sample
from lddgan_kernels.diffusion import Schedule
from lddgan_kernels.diffusion import sample as draw
from lddgan_kernels.interop import to_published
from lddgan_kernels.metrics.efficientnet import EfficientNetLite0
from lddgan_kernels.models import (
    Autoencoder,
    AutoencoderConfig,
    Generator,
    GeneratorConfig,
    WaveletGenerator,
)
from lddgan_kernels.ops import haar_idwt2d

SEEDS = torch.tensor([3, 5])
OPTIONS = {
    "num_channels_dae": 16, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [8],
    "nz": 7, "z_emb_dim": 16, "n_mlp": 1, "num_timesteps": 2,
}  # fmt: skip


def randomized(module):
    """The module with outputs that are not almost nothing, as they are at the start."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def tiny(kind, channels):
    config = GeneratorConfig(
        channels, 8, 16, (1, 2), num_blocks=1, attention_resolutions=(8,), z_dim=7,
        mapping_layers=1, mapping_width=16,
    )  # fmt: skip
    return randomized(kind(config))


def save(folder, module, **more):
    """Writes checkpoint and options as the published code has them; the flags that name both."""
    weights = {"module." + name: value for name, value in to_published(module).items()}
    torch.save(weights, folder / "netG.pth")
    options = {**OPTIONS, "num_channels": module.config.channels, "image_size": 8, **more}
    (folder / "options.json").write_text(json.dumps(options))
    return ["--published", str(folder / "netG.pth"), "--options", str(folder / "options.json")]


def run(folder, flags):
    """The command's images of SEEDS, uint8 (N, H, W, 3)."""
    out = folder / "out"
    assert sample.main([*flags, "--seeds", "3,5", "--out", str(out), "--device", "cpu"]) == 0
    return np.stack([np.asarray(Image.open(out / f"{seed}.png")) for seed in SEEDS.tolist()])


def latents(module):
    shape = (module.config.channels, 8, 8)
    return draw(module, Schedule(2), shape, SEEDS, z_dim=module.config.z_dim)


def as_pixels(images):
    levels = ((images.clamp(-1, 1) + 1) * 127.5).round().byte()
    assert levels.float().std() > 5
    return levels.permute(0, 2, 3, 1).numpy()


def assert_same(actual, expected):
    """Equal to float32 rounding, which can tip a level: other batches take other kernels."""
    difference = np.abs(actual.astype(int) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


def test_ddgan(tmp_path):
    module = tiny(Generator, 3)
    expected = as_pixels(latents(module))
    assert_same(run(tmp_path, save(tmp_path, module)), expected)


def test_wddgan(tmp_path):
    module = tiny(WaveletGenerator, 12)
    flags = [*save(tmp_path, module), "--network", "WaveletNCSNpp"]
    expected = as_pixels(haar_idwt2d(latents(module), 2.0))
    assert_same(run(tmp_path, flags), expected)


@pytest.mark.parametrize("kl", [False, True])
def test_lddgan(tmp_path, kl):
    module = tiny(Generator, 4)
    codes = {"codebook_size": 0, "kl": True} if kl else {"codebook_size": 16}
    autoencoder = randomized(Autoencoder(AutoencoderConfig(3, 16, 4, 32, (1, 2), 1, **codes)))
    torch.save({"state_dict": to_published(autoencoder)}, tmp_path / "autoencoder.ckpt")
    options = tmp_path / "autoencoder.toml"
    options.write_text(
        ("" if kl else "n_embed = 16\n") + "embed_dim = 4\n[ddconfig]\n"
        f"double_z = {'true' if kl else 'false'}\nz_channels = 4\nresolution = 16\n"
        "in_channels = 3\nout_ch = 3\nch = 32\nch_mult = [1, 2]\nnum_res_blocks = 1\n"
        "attn_resolutions = []\n"
    )
    flags = save(tmp_path, module, scale_factor=2.5)
    flags += ["--autoencoder", str(tmp_path / "autoencoder.ckpt")]
    flags += ["--autoencoder-options", str(options)]
    with torch.no_grad():
        expected = as_pixels(autoencoder.decode(latents(module) * 2.5))
    assert_same(run(tmp_path, flags), expected)


def test_what_does_not_fit_is_said(tmp_path, capsys):
    flags = save(tmp_path, tiny(Generator, 4))
    assert sample.main(flags) == 1
    assert "latents need --autoencoder" in capsys.readouterr().err
    assert sample.main(flags[:2]) == 1
    assert "--options must be given" in capsys.readouterr().err
    assert sample.main(["--run", "a", *flags]) == 1
    assert "one of --run, --checkpoint and --published" in capsys.readouterr().err
    (tmp_path / "options.json").write_text("[1]")
    assert sample.main(flags) == 1
    assert "options must be a table" in capsys.readouterr().err


def test_a_published_generator_is_judged(tmp_path, capsys):
    """Against images of the user's, as published code names no data."""
    flags = [*save(tmp_path, tiny(Generator, 3)), "--out", str(tmp_path / "scores.json")]
    torch.save(EfficientNetLite0().state_dict(), tmp_path / "w.pth")
    flags += ["--features", str(tmp_path / "w.pth"), "--device", "cpu", "--repeat", "1"]
    assert evaluate.main(flags) == 1
    assert "evaluate: --real must be given with --published" in capsys.readouterr().err
    real = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "real.npz", x=real)
    assert evaluate.main([*flags, "--real", str(tmp_path / "real.npz")]) == 0
    figures = json.loads((tmp_path / "scores.json").read_text())
    assert (figures["fake"]["count"], figures["resolution"]) == (9, 8)
    assert figures["sampling"]["calls"] == 2
    assert "Network calls an image (NFE)" in capsys.readouterr().out
    assert evaluate.main([*flags, "--real", str(tmp_path / "real.npz"), "--resolution", "4"]) == 1
    said = capsys.readouterr().err
    assert "evaluate: resolution must be that of the samples, 8, got 4" in said
