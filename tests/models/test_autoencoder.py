import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from lddgan_kernels import use_backend
from lddgan_kernels.interop.autoencoder import autoencoder_options, load_autoencoder
from lddgan_kernels.models.autoencoder import Autoencoder, AutoencoderConfig
from lddgan_kernels.testing import assert_error_rule, relative_error
from tests.conftest import shared_path

TINY = {"base_channels": 8, "num_blocks": 1, "resolution": 16, "channel_multipliers": (1, 2)}
VQ = AutoencoderConfig(**TINY, latent_channels=3, codebook_size=16)
KL = AutoencoderConfig(
    **TINY, latent_channels=2, z_channels=4, codebook_size=0, kl=True, attention_resolutions=(8,)
)
PLAIN = AutoencoderConfig(**TINY, codebook_size=0, image_channels=1, tanh_out=True)


def golden(name):
    from safetensors import safe_open

    with safe_open(shared_path(f"golden/{name}.safetensors"), "pt") as file:
        config = json.loads(file.metadata()["config"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    state = {
        key.removeprefix("state_dict."): value
        for key, value in tensors.items()
        if key.startswith("state_dict.")
    }
    return config, tensors, state


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("name", ["autoencoder_kl", "autoencoder_vq"])
def test_golden(name, backend, layout):
    config, tensors, state = golden(name)
    module = load_autoencoder(state, config["network"], config["options"])
    module = module.eval().to(memory_format=layout)
    with use_backend(backend), torch.no_grad():
        x = tensors["x"].to(memory_format=layout)
        latent, log_variance = module.moments(x)
        wanted = tensors["latent_mean" if module.config.kl else "latent"]
        assert relative_error(latent, wanted) < 1e-4
        assert torch.equal(module.encode(x), latent)
        if log_variance is None:
            quantized, indices = module.quantizer(wanted)
            assert torch.equal(indices.flatten(), tensors["indices"])
            assert relative_error(quantized, tensors["quantized"]) < 1e-6
        else:
            assert relative_error(log_variance, tensors["latent_logvar"]) < 1e-4
        assert relative_error(module.decode(wanted), tensors["y"]) < 1e-4


@pytest.mark.parametrize("config", [VQ, KL, PLAIN], ids=["vq", "kl", "plain"])
def test_shapes_and_gradients(config):
    module = Autoencoder(config)
    x = torch.randn(2, config.image_channels, 16, 16)
    out = module(x)
    assert out.reconstruction.shape == x.shape
    assert out.latent.shape == (2, config.latent_channels, 8, 8)
    assert out.extra_loss.shape == ()
    (out.reconstruction.square().mean() + out.extra_loss).backward()
    assert [name for name, p in module.named_parameters() if p.grad is None] == []
    # The gradient reaches the encoder through the quantiser.
    assert module.encoder.conv_in.weight.grad.abs().max() > 0


@pytest.mark.parametrize("config", [VQ, KL], ids=["vq", "kl"])
def test_error_rule_against_the_reference_model(config):
    module = Autoencoder(config).eval()
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        latent = module.encode(x)
        image = module.decode(latent)
        with use_backend("reference"):
            plain_latent = module.encode(x)
            plain_image = module.decode(latent)
            exact = module.double()
            assert_error_rule(latent, plain_latent, exact.encode(x.double()))
            assert_error_rule(image, plain_image, exact.decode(latent.double()))


def test_channels_last_is_kept():
    module = Autoencoder(PLAIN).eval().to(memory_format=torch.channels_last)
    layouts = []
    for block in [*module.encoder.levels, *module.decoder.levels, *module.decoder.middle]:
        block.register_forward_hook(
            lambda _, __, out: layouts.append(
                out.x.is_contiguous(memory_format=torch.channels_last)
            )
        )
    with torch.no_grad():
        module(torch.randn(2, 1, 16, 16).to(memory_format=torch.channels_last))
    assert len(layouts) == 7
    assert all(layouts)


def test_autocast_runs_in_half_precision():
    module = Autoencoder(VQ)
    x = torch.randn(2, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        out = module(x)
    assert out.reconstruction.dtype == torch.bfloat16
    assert out.extra_loss.dtype == torch.float32
    assert relative_error(out.latent.float(), module(x).latent) < 0.03
    (out.reconstruction.float().square().mean() + out.extra_loss).backward()
    assert module.encoder.conv_in.weight.grad.isfinite().all()


def test_kl_term_is_the_divergence_from_a_standard_normal():
    module = Autoencoder(KL)
    x = torch.randn(2, 3, 16, 16)
    mean, log_variance = module.moments(x)
    posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    wanted = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(module(x).extra_loss, wanted.sum() / x.numel())


def test_quantizer_loss_and_start():
    module = Autoencoder(VQ).quantizer
    z = 5 * torch.randn(2, 3, 8, 8)
    module.initialize(z)
    _, indices = module(z)
    assert indices.unique().numel() > 10
    codes = module.codebook[indices].permute(0, 3, 1, 2)
    torch.testing.assert_close(module.loss(z, indices), 1.25 * (z - codes).square().mean())
    (grad,) = torch.autograd.grad(module.loss(z, indices), module.codebook)
    used = torch.zeros(16, dtype=torch.bool).index_fill(0, indices.flatten(), True)
    assert grad[used].abs().sum(1).min() > 0
    assert grad[~used].abs().sum() == 0


def test_attention_follows_the_resolution():
    config = AutoencoderConfig(
        resolution=64,
        channel_multipliers=(1, 1, 2),
        base_channels=8,
        num_blocks=3,
        attention_resolutions=(32,),
        codebook_size=8,
    )
    module = Autoencoder(config)
    assert [len(level.attention) for level in module.encoder.levels] == [0, 3, 0]
    assert [len(level.attention) for level in module.decoder.levels] == [0, 4, 0]
    assert [len(level.blocks) for level in module.decoder.levels] == [4, 4, 4]


def test_bounded_latent_has_neither_offset_nor_outliers():
    torch.manual_seed(0)
    module = Autoencoder(replace(VQ, bounded_latent=True))
    x = torch.randn(2, 3, 16, 16)
    module.quant_conv.weight.data.mul_(50)
    module.quant_conv.bias.data.mul_(50)
    module.quant_conv.bias.data.add_(7.0)
    plain = Autoencoder(VQ)
    plain.load_state_dict(module.state_dict())
    h = plain.encode(x)
    latent = module.encode(x)
    assert h.abs().max() > 2
    assert latent.abs().max() <= 1
    assert 0.3 < latent.std() < 0.8
    mean, deviation = h.mean((1, 2, 3), True), h.std((1, 2, 3), correction=0, keepdim=True)
    torch.testing.assert_close(latent, ((h - mean) / deviation).tanh(), rtol=1e-4, atol=1e-4)
    assert torch.equal(module(x).latent, latent)


def test_bad_input():
    with pytest.raises(ValueError, match="bounded_latent must be False where kl is set, got True"):
        AutoencoderConfig(codebook_size=0, kl=True, bounded_latent=True)
    with pytest.raises(ValueError, match="bounded_latent must be False, got True"):
        autoencoder_options(replace(VQ, bounded_latent=True))
    with pytest.raises(ValueError, match="codebook_size must be 0 where kl is set, got 8192"):
        AutoencoderConfig(kl=True)
    with pytest.raises(ValueError, match="resolution must be a multiple of 4 for 3 levels, got 30"):
        AutoencoderConfig(resolution=30, channel_multipliers=(1, 2, 4))
    module = Autoencoder(VQ)
    with pytest.raises(ValueError, match=r"x must be \(N, 3, H, W\) .* got \(1, 1, 16, 16\)"):
        module.encode(torch.zeros(1, 1, 16, 16))
    with pytest.raises(ValueError, match=r"z must be \(N, 3, h, w\), got \(1, 4, 8, 8\)"):
        module.decode(torch.zeros(1, 4, 8, 8))


def test_large_batches_are_decoded_in_chunks(monkeypatch):
    module = Autoencoder(VQ).eval()
    z = torch.randn(5, 3, 8, 8)
    sizes = []
    module.decoder.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    monkeypatch.setattr("lddgan_kernels.models.autoencoder.CHUNK_PIXELS", 2 * 16 * 16 + 1)
    with torch.no_grad():
        chunked = module.decode(z)
    whole = module.decode(z)
    assert sizes == [2, 2, 1, 5]
    torch.testing.assert_close(chunked, whole)


def test_state_is_saved_whole(tmp_path):
    module = Autoencoder(KL)
    module.latent_scale.fill_(7.0)
    torch.save(module.state_dict(), tmp_path / "autoencoder.pt")
    other = Autoencoder(KL)
    other.load_state_dict(torch.load(tmp_path / "autoencoder.pt", weights_only=True))
    assert other.latent_scale == 7.0
    assert isinstance(other.last_layer, nn.Parameter)
