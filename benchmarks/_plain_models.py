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
from lddgan_kernels.models import blocks
from lddgan_kernels.nn import (
    FeatureMap,
    LateBiasConv2d,
    ResidualConv,
    Shortcut,
    as_tensor,
    fir,
    group_norm,
)
from lddgan_kernels.ops._fir import taps as taps_of
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
    return upfirdn2d(x, taps_of("up", x.device), up=2, pad=(2, 1))


def published_down(x: Tensor) -> Tensor:
    return upfirdn2d(x, taps_of("down", x.device), down=2, pad=(1, 1))


def _depthwise(x: Tensor, direction: str) -> Tensor:
    return taps_2d(taps_of(direction, x.device), x).expand(x.shape[1], 1, 4, 4)


def best_up(x: Tensor) -> Tensor:
    weight = _depthwise(x, "up")
    return F.conv_transpose2d(x, weight, stride=2, padding=1, groups=x.shape[1])


def best_down(x: Tensor) -> Tensor:
    return F.conv2d(x, _depthwise(x, "down"), stride=2, padding=1, groups=x.shape[1])


def best_filter(x: Tensor, taps: Tensor, pad: Sequence[int]) -> Tensor:
    """The pyramid's filter: no change of resolution."""
    weight = taps_2d(taps, x).expand(x.shape[1], 1, 4, 4)
    return F.conv2d(x, weight, padding=pad[0], groups=x.shape[1])


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


# What of our layers leaves a bias to the next pass; PyTorch's own convolutions add it for nothing
# on a CPU.


def residual_conv(
    layer: ResidualConv,
    h: Tensor,
    x: Tensor | FeatureMap,
    x2: Tensor | FeatureMap | None = None,
    *,
    shortcut: Shortcut | None = None,
    projected: bool = False,
) -> FeatureMap:
    """`ResidualConv.forward`."""
    s, bias = as_tensor(x), layer.bias
    if shortcut is not None:
        bias = layer.total_bias(bias, shortcut.bias)
        if not projected:
            others = [] if x2 is None else [shortcut(x2, first=s.shape[1])]
            s = sum(others, shortcut(s))
    h = F.conv2d(h, layer.weight, bias, layer.stride, layer.padding)
    return FeatureMap(residual_scale_reference(s, h, factor=layer.factor))


def late_bias(layer: LateBiasConv2d, x: Tensor | FeatureMap) -> FeatureMap:
    """`LateBiasConv2d.forward`."""
    h = F.conv2d(as_tensor(x), layer.weight, layer.bias, layer.stride, layer.padding)
    return FeatureMap(h)


def plus(x: FeatureMap, h: Tensor | FeatureMap, factor: float) -> FeatureMap:
    """`FeatureMap.plus`."""
    return FeatureMap(residual_scale_reference(x.x, as_tensor(h), factor=factor))


PUBLISHED: Form = {
    "upsample2d": published_up,
    "downsample2d": published_down,
    "upfirdn2d": upfirdn2d,
}
BEST: Form = {"upsample2d": best_up, "downsample2d": best_down, "upfirdn2d": best_filter}


MODULES = (group_norm, fir, blocks)
METHODS: tuple[tuple[Any, str, Callable], ...] = (
    (ResidualConv, "forward", residual_conv),
    (LateBiasConv2d, "forward", late_bias),
    (FeatureMap, "plus", plus),
)


@contextmanager
def plain(form: Form) -> Iterator[None]:
    """Every model runs in plain PyTorch, with the FIR filters of `form`."""
    replacements = form | {
        "ada_group_norm": norm,
        "norm_resample": partial(norm_resample, form),
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
