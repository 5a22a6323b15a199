"""The authors' own networks, run from clones of their repositories.

Nothing of theirs is kept here: LDDGAN_PUBLISHED_CODE names a folder that holds the clones LDDGAN,
denoising-diffusion-gan and WaveDiff. They need einops and PyWavelets. Their FIR kernel, compiled
when it is imported, is passed over: on the CPU they run plain PyTorch.
"""

import importlib
import os
import sys
from pathlib import Path
from types import SimpleNamespace

from torch import nn
from torch.utils import cpp_extension

from lddgan_kernels.interop import to_published
from lddgan_kernels.models import Generator, GeneratorConfig, WaveletGenerator

PACKAGES = ("score_sde", "DWT_IDWT")  # all three repositories have the first


def folder() -> Path | None:
    """The folder of the clones, or None where it was not named."""
    named = os.environ.get("LDDGAN_PUBLISHED_CODE")
    return Path(named) if named else None


def generator(repository: str, ours: Generator) -> nn.Module:
    """The published network of the same structure, with the weights of ours.

    Args:
        repository: "LDDGAN", "denoising-diffusion-gan" or "WaveDiff".

    Raises:
        RuntimeError: the weights do not fit it.
    """
    root = folder()
    assert root is not None, "LDDGAN_PUBLISHED_CODE is not set"
    _forget_packages()
    compile_kernel = cpp_extension.load
    cpp_extension.load = lambda *args, **kwargs: None
    sys.path.insert(0, str(root / repository))
    try:
        module = importlib.import_module("score_sde.models.ncsnpp_generator_adagn")
    finally:
        sys.path.pop(0)
        cpp_extension.load = compile_kernel
        _forget_packages()
    wavelet = isinstance(ours, WaveletGenerator)
    network = getattr(module, "WaveletNCSNpp" if wavelet else "NCSNpp")(_options(ours.config))
    network.load_state_dict(to_published(ours))
    weight = next(ours.parameters())
    return network.to(weight.device, weight.dtype).eval().requires_grad_(False)


def _forget_packages() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] in PACKAGES]:
        del sys.modules[name]


def _options(config: GeneratorConfig) -> SimpleNamespace:
    """Our configuration as the published options."""
    return SimpleNamespace(
        num_channels=config.channels,
        image_size=config.resolution,
        num_channels_dae=config.base_channels,
        ch_mult=list(config.channel_multipliers),
        num_res_blocks=config.num_blocks,
        attn_resolutions=config.attention_resolutions,
        nz=config.z_dim,
        n_mlp=config.mapping_layers,
        z_emb_dim=config.mapping_width,
        dropout=config.dropout,
        not_use_tanh=not config.tanh_out,
        patch_size=config.patch_size,
        fir=config.fir,
        fir_kernel=[1, 3, 3, 1],
        skip_rescale=config.skip_rescale,
        centered=config.centered,
        progressive_input="residual" if config.input_pyramid else "none",
        progressive="none",
        progressive_combine="sum",
        resblock_type="biggan",
        embedding_type="positional",
        resamp_with_conv=True,
        conditional=True,
        fourier_scale=16.0,
        no_use_fbn=False,
        no_use_freq=False,
        no_use_residual=False,
        use_local_loss=False,
    )
