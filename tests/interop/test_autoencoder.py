from dataclasses import replace

import pytest
import torch

from lddgan_kernels.interop.autoencoder import (
    autoencoder_options,
    autoencoder_to_published,
    load_autoencoder,
)
from lddgan_kernels.models.autoencoder import Autoencoder
from tests.models.test_autoencoder import KL, VQ


def network(config):
    return "AutoencoderKL" if config.kl else "VQModelInterface"


@pytest.mark.parametrize("config", [VQ, KL], ids=["vq", "kl"])
def test_round_trip(config):
    config = replace(config, z_channels=4)
    module = Autoencoder(config).eval()
    state = autoencoder_to_published(module)
    loaded = load_autoencoder(state, network(config), autoencoder_options(config)).eval()
    assert loaded.config == config
    x = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(loaded.decode(loaded.encode(x)), module.decode(module.encode(x)))


def test_extras_are_ignored_and_listed():
    state = autoencoder_to_published(Autoencoder(VQ))
    extras = {
        "loss.discriminator.main.0.weight": torch.zeros(1),
        "loss.perceptual_loss.lin0.model.1.weight": torch.zeros(1),
        "loss.logvar": torch.zeros(()),
    }
    with pytest.warns(UserWarning, match="ignored 3 entries"):
        module = load_autoencoder(state | extras, network(VQ), autoencoder_options(VQ))
    assert module.ignored_entries == tuple(extras)
    nested = {f"first_stage_model.{name}": value for name, value in state.items()}
    nested["model.diffusion_model.time_embed.0.weight"] = torch.zeros(1)
    with pytest.warns(UserWarning, match="model.diffusion_model"):
        load_autoencoder(nested, network(VQ), autoencoder_options(VQ))


def test_defaults():
    options = autoencoder_options(VQ)
    for name in ("tanh_out", "dropout"):
        del options["ddconfig"][name]
    module = load_autoencoder(autoencoder_to_published(Autoencoder(VQ)), network(VQ), options)
    assert module.config.tanh_out is False
    assert module.config.dropout == 0.0


def test_contradictions():
    state = autoencoder_to_published(Autoencoder(VQ))
    options = autoencoder_options(VQ)

    def load(net="VQModelInterface", dd=None, entries=state, **changed):
        changed["ddconfig"] = options["ddconfig"] | (dd or {})
        return load_autoencoder(entries, net, options | changed)

    with pytest.raises(ValueError, match=r"embedding.weight: expected \(32, 3\), found \(16, 3\)"):
        load(n_embed=32)
    with pytest.raises(ValueError, match=r"missing encoder.down.0.block.1.norm1.weight \(8,\)"):
        load(dd={"num_res_blocks": 2})
    with pytest.raises(ValueError, match="not expected encoder.mid.stray"):
        load(entries=state | {"encoder.mid.stray": torch.zeros(1)})
    with pytest.raises(ValueError, match="double_z must be True for AutoencoderKL"):
        load("AutoencoderKL")
    with pytest.raises(ValueError, match="attn_type must be vanilla, got linear"):
        load(dd={"attn_type": "linear"})
    with pytest.raises(ValueError, match="network must be one of"):
        load("NCSNpp")
    with pytest.raises(ValueError, match="options of VQModelInterface must hold n_embed"):
        load_autoencoder(
            state, "VQModelInterface", {k: options[k] for k in ("ddconfig", "embed_dim")}
        )
