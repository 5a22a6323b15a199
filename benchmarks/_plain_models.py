"""Our models in plain PyTorch: as published, and as fast as plain PyTorch gets.

Inside `with plain(FORM):` the models run without any kernel of ours. The forms differ in the FIR
filter: PUBLISHED inserts zeros, pads and convolves with the 2-D taps; BEST convolves each channel
by itself, strided or transposed. Both normalise and convolve with PyTorch's functions, in the
layout that they are given.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lddgan_kernels import use_backend
from lddgan_kernels.models import (
    autoencoder_layers,
    blocks,
    discriminator,
    feature_map,
    layers,
    vit_generator,
)
from lddgan_kernels.models.feature_map import FeatureMap
from lddgan_kernels.ops.residual_scale import residual_scale_reference

Form = dict[str, Callable]


def norm(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    num_groups: int,
    *,
    eps: float = 1e-6,
    activation: str | None = "silu",
    x2: Tensor | None = None,
    bias: Tensor | None = None,
    moments: None = None,
) -> Tensor:
    """`ada_group_norm` step by step."""
    if bias is not None:
        x = x + bias[:, :, None, None]
    if x2 is not None:
        x = torch.cat([x, x2], dim=1)
    if scale.ndim == 1:
        x = F.group_norm(x, num_groups, scale, shift, eps)
    else:
        x = F.group_norm(x, num_groups, eps=eps)
        x = scale[:, :, None, None] * x + shift[:, :, None, None]
    return x if activation is None else F.silu(x)


def taps_2d(taps: Tensor, x: Tensor) -> Tensor:
    """1-D taps as x's convolution reads them: (1, 1, K, K), flipped, like x."""
    flipped = taps.flip(0).to(x)
    return (flipped[:, None] * flipped[None, :])[None, None]


def upfirdn2d(
    x: Tensor, taps: Tensor, up: int = 1, down: int = 1, pad: Sequence[int] = (0, 0)
) -> Tensor:
    """Insert zeros, pad, convolve, decimate: every channel as an image of its own."""
    n, c, h, w = x.shape
    x = x.reshape(n * c, 1, h, 1, w, 1)
    x = F.pad(x, (0, up - 1, 0, 0, 0, up - 1)).reshape(n * c, 1, h * up, w * up)
    x = F.conv2d(F.pad(x, (*pad, *pad)), taps_2d(taps, x))[:, :, ::down, ::down]
    return x.reshape(n, c, *x.shape[2:])


def published_up(x: Tensor) -> Tensor:
    return upfirdn2d(x, torch.tensor([1.0, 3.0, 3.0, 1.0]) / 4, up=2, pad=(2, 1))


def published_down(x: Tensor) -> Tensor:
    return upfirdn2d(x, torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8, down=2, pad=(1, 1))


def _depthwise(x: Tensor, gain: float) -> Tensor:
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], device=x.device) * gain
    return taps_2d(taps, x).expand(x.shape[1], 1, 4, 4)


def best_up(x: Tensor) -> Tensor:
    weight = _depthwise(x, 1 / 4)
    return F.conv_transpose2d(x, weight, stride=2, padding=1, groups=x.shape[1])


def best_down(x: Tensor) -> Tensor:
    return F.conv2d(x, _depthwise(x, 1 / 8), stride=2, padding=1, groups=x.shape[1])


def best_filter(x: Tensor, taps: Tensor, pad: Sequence[int]) -> Tensor:
    """The pyramid's filter: no change of resolution."""
    weight = taps_2d(taps, x).expand(x.shape[1], 1, 4, 4)
    return F.conv2d(x, weight, padding=pad[0], groups=x.shape[1])


def residual_scale(
    x: Tensor,
    h: Tensor,
    *,
    h2: Tensor | None = None,
    bias: Tensor | None = None,
    factor: float = 0.5**0.5,
) -> Tensor:
    """`residual_scale` step by step."""
    return residual_scale_reference(x, h, h2, bias, factor)


def residual_scale_moments(
    x: Tensor, h: Tensor, _num_groups: int, **options: Any
) -> tuple[Tensor, None]:
    """`residual_scale_moments`, without them."""
    return residual_scale(x, h, **options), None


def norm_resample(
    form: Form,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    num_groups: int,
    direction: str,
    *,
    skip: Tensor | None = None,
    moments: None = None,
) -> tuple[Tensor, Tensor]:
    """`norm_resample` step by step."""
    resample = form[f"{direction}sample2d"]
    h = norm(x, scale, shift, num_groups)
    return resample(h), resample(x if skip is None else skip)


# What of our models leaves a convolution's bias to the next pass; PyTorch's own convolutions add it
# for nothing on a CPU.


def finish(
    block: blocks.Block,
    x: Tensor,
    h: Tensor,
    mine: layers.BlockControl,
    *,
    h2: Tensor | None = None,
    folds: bool = False,
) -> FeatureMap:
    """`Block.finish`."""
    h = norm(h, mine.scale1, mine.shift1, block.groups[1], bias=mine.bias)
    if block.dropout:
        h = F.dropout(h, block.dropout, block.training)
    bias = layers.bias_of(block.conv1)
    if block.shortcut is not None:
        bias = block.total_bias(bias, layers.bias_of(block.shortcut))
    h = F.conv2d(h, block.conv1.weight, bias, padding=1)
    return FeatureMap(residual_scale(x, h, h2=h2, factor=block.factor))


def pyramid_down(step: blocks.PyramidDown, x: Tensor, h: Tensor) -> FeatureMap:
    """`PyramidDown.forward`."""
    x = blocks.upfirdn2d(x, step.taps, pad=(2, 2)) if step.fir else F.pad(x, (0, 1, 0, 1))
    return layers.merge(step.conv(x), h, step.rescale)


def discriminator_block(block: discriminator.DiscriminatorBlock, x: Tensor, bias: Tensor) -> Tensor:
    """`DiscriminatorBlock.forward`."""
    h = block.conv0(layers.leaky_relu(x))
    h = layers.leaky_relu(h + bias[:, :, None, None])
    if block.down:
        h, x = discriminator.downsample2d(h), discriminator.downsample2d(x)
    return residual_scale(block.shortcut(x), block.conv1(h))


PUBLISHED: Form = {
    "upsample2d": published_up,
    "downsample2d": published_down,
    "upfirdn2d": upfirdn2d,
}
BEST: Form = {"upsample2d": best_up, "downsample2d": best_down, "upfirdn2d": best_filter}


MODULES = (layers, feature_map, blocks, vit_generator, autoencoder_layers, discriminator)
METHODS: tuple[tuple[Any, str, Callable], ...] = (
    (blocks.Block, "finish", finish),
    (blocks.PyramidDown, "forward", pyramid_down),
    (discriminator.DiscriminatorBlock, "forward", discriminator_block),
)


@contextmanager
def plain(form: Form) -> Iterator[None]:
    """Every model runs in plain PyTorch, with the FIR filters of `form`."""
    replacements = form | {
        "ada_group_norm": norm,
        "norm_resample": partial(norm_resample, form),
        "residual_scale": residual_scale,
        "residual_scale_moments": residual_scale_moments,
    }
    places = [
        (module, name, function)
        for module in MODULES
        for name, function in replacements.items()
        if hasattr(module, name)
    ]
    places += METHODS
    swapped = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
    with use_backend("reference"):
        for owner, name, function in places:
            setattr(owner, name, function)
        try:
            yield
        finally:
            for owner, name, original in swapped:
                setattr(owner, name, original)
