"""Single layers of other people's networks: norms, convolutions, resampling."""

from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lddgan_kernels.nn import Cached, Conv2d, fold_nearest, folded_rows, is_hooked
from lddgan_kernels.ops import ada_group_norm, downsample2d, residual_scale, upsample2d
from lddgan_kernels.patching.rule import Rule, activation_of, original_class

FIR = (1, 3, 3, 1)


def image(channels: int, *, size: int = 8) -> Tensor:
    """One to try a module with; the same in every call."""
    generator = torch.Generator().manual_seed(channels)
    return torch.randn(2, channels, size, size, generator=generator)


def row(features: int) -> Tensor:
    """(2, features), likewise."""
    return image(features, size=1).flatten(1)


# Norms. Those of PyTorch, ADM and EDM have num_groups, eps, weight and bias.


def normed(
    norm: Any,
    x: Tensor,
    activation: str | None,
    *,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """act(norm(x + bias) * (1 + scale) + shift)."""
    rows = folded_rows(norm.weight, norm.bias, scale, shift)
    return ada_group_norm(x, *rows, norm.num_groups, eps=norm.eps, activation=activation, bias=bias)


def _run_norm(norm: Any, x: Tensor) -> Tensor:
    return normed(norm, x, norm._lddgan.activation)


def _prepare_norm(norm: Any) -> SimpleNamespace | None:
    parts = ("num_groups", "eps", "weight", "bias")
    return SimpleNamespace(activation=None) if all(hasattr(norm, p) for p in parts) else None


def _prepare_norm_silu(norm: Any) -> SimpleNamespace:
    return SimpleNamespace(activation="silu")


def _norm_example(norm: Any) -> tuple[Any, ...]:
    return (image(len(norm.weight)),)


def _nothing_more(module: Any) -> SimpleNamespace:
    return SimpleNamespace()


def _pass(module: Any, x: Tensor) -> Tensor:
    return x


NORM = Rule("norm", _run_norm, _prepare_norm)
FOREIGN_NORM = NORM._replace(example=_norm_example)
# Two modules that a network calls one after the other.
NORM_SILU = Rule("norm and activation", _run_norm, _prepare_norm_silu)
ITS_SILU = Rule("", _pass, _nothing_more)


# Sequences in which an activation follows a norm.


def _run_sequential(sequence: Any, x: Any) -> Any:
    state = getattr(sequence, "_lddgan", None)  # a slice has none
    fused: dict[int, str] = {} if state is None else state.fused
    done = -1
    for i, layer in enumerate(sequence):
        if i in fused and is_norm(layer):
            x, done = normed(layer, x, fused[i]), i + 1
        elif i != done:
            x = layer(x)
    return x


def _prepare_sequential(sequence: Any) -> SimpleNamespace | None:
    layers, fused = list(sequence), {}
    for i, (layer, following) in enumerate(pairwise(layers)):
        named = type(following).__name__ in ("SiLU", "Swish", "GELU", "ReLU")
        activation = activation_of(following) if is_norm(layer) and named else ""
        if activation and not is_hooked(layer) and not is_hooked(following):
            fused[i] = activation
    return SimpleNamespace(fused=fused) if fused else None


SEQUENCE = Rule("norm and activation", _run_sequential, _prepare_sequential)


# Convolutions


def convolve(conv: Any, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """conv(x) + residual, by `lddgan_kernels.nn.Conv2d` with the weights of a replaced one."""
    layer = conv._lddgan.layer
    layer.training = conv.training
    out: Tensor = layer.convolve(x, conv.weight, conv.bias, residual)
    return out


def joined(conv: Any, h: Tensor, x: Tensor, factor: float = 1.0) -> Tensor:
    """(x + conv(h)) * factor."""
    if factor == 1.0 and original_class(conv) is not type(conv) and not is_hooked(conv):
        layer = getattr(conv._lddgan, "layer", None)
        same = h.dtype == x.dtype == conv.weight.dtype
        if layer is not None and same and layer.adds_residual(h, conv.weight):
            return convolve(conv, h, x)
    h = conv(h)
    return x + h if factor == 1.0 else residual_scale(x, h, factor=factor)


def _run_conv(conv: Any, x: Tensor) -> Tensor:
    if x.ndim != 4:
        return F.conv2d(x, conv.weight, conv.bias, padding=conv.padding)
    return convolve(conv, x)


def _layer(kernel: int) -> Conv2d:
    """What decides how a convolution runs; its own weights are not read."""
    with torch.device("meta"):  # without a random number
        return Conv2d(1, 1, kernel)


def _prepare_conv(conv: Any) -> SimpleNamespace | None:
    kernel = conv.kernel_size[0]
    as_ours = (
        conv.kernel_size == (kernel, kernel)
        and kernel in (1, 3)
        and conv.stride == conv.dilation == (1, 1)
        and conv.groups == 1
        and conv.padding in ((kernel // 2, kernel // 2), "same")
        and conv.padding_mode == "zeros"
        and conv.weight.device.type == "cpu"  # elsewhere PyTorch's is what ours would call
    )
    return SimpleNamespace(layer=_layer(kernel)) if as_ours else None


CONV = Rule("convolution", _run_conv, _prepare_conv)


# Doubling by the nearest neighbour, then a 3x3 convolution (diffusers, ADM, latent diffusion).


def doubled_conv(conv: Any, x: Tensor, cached: Cached[Tensor]) -> Tensor:
    """Both at once: see `lddgan_kernels.nn.NearestUpsampleConv2d`."""
    kernel = cached(fold_nearest, conv.weight)
    return F.conv_transpose2d(x, kernel, conv.bias, stride=2, padding=1)


def _run_upsample(module: Any, x: Tensor, *others: Any, **options: Any) -> Tensor:
    state = module._lddgan
    conv = getattr(module, state.conv)
    given = others or any(value is not None for value in options.values())
    if given or conv._forward_hooks or conv._forward_pre_hooks:  # another output size, say
        out: Tensor = state.original(module, x, *others, **options)
        return out
    return doubled_conv(conv, x, state.kernel)


def _prepare_upsample(module: Any) -> SimpleNamespace | None:
    for name in ("conv", "Conv_0", "Conv2d_0"):
        conv = module._modules.get(name)
        if type(conv) is nn.Conv2d and _is_plain_3x3(conv):
            return SimpleNamespace(conv=name, kernel=Cached(), original=type(module).forward)
    return None


def _is_plain_3x3(conv: nn.Conv2d) -> bool:
    return (
        conv.kernel_size == (3, 3)
        and conv.stride == conv.dilation == (1, 1)
        and conv.groups == 1
        and conv.padding == (1, 1)
        and conv.padding_mode == "zeros"
    )


def _upsample_example(module: Any) -> tuple[Any, ...]:
    name = _prepared(module, _prepare_upsample).conv
    return (image(getattr(module, name).in_channels),)


def _prepared(module: Any, prepare: Callable[[Any], SimpleNamespace | None]) -> SimpleNamespace:
    found = prepare(module)
    assert found is not None
    return found


UPSAMPLE_CONV = Rule("upsampling and convolution", _run_upsample, _prepare_upsample,
                     _upsample_example)  # fmt: skip


# Resampling by StyleGAN's filter (diffusers, score_sde, DDGAN).


def _run_fir(module: Any, x: Tensor) -> Tensor:
    out: Tensor = module._lddgan.resample(x)
    return out


def _prepare_fir(module: Any) -> SimpleNamespace | None:
    """Resamplers without a convolution: score_sde's and DDGAN's say `fir`, diffusers' are named."""
    name = type(module).__name__
    if any(True for _ in module.parameters()) or tuple(getattr(module, "fir_kernel", ())) != FIR:
        return None
    if not getattr(module, "fir", True):
        return None
    return SimpleNamespace(resample=upsample2d if "Up" in name else downsample2d)


def _fir_example(module: Any) -> tuple[Any, ...]:
    return (image(3),)


RESAMPLE = Rule("FIR resampling", _run_fir, _prepare_fir, _fir_example)


# EDM's convolutions, which resample too.


def _run_edm_conv(conv: Any, x: Tensor) -> Tensor:
    state = conv._lddgan
    weight, bias = (None if p is None else p.to(x.dtype) for p in (conv.weight, conv.bias))
    if state.resample == "nearest" and weight is not None and weight.shape[2] == 3:
        kernel = state.kernel(fold_nearest, weight)
        return F.conv_transpose2d(x, kernel, bias, stride=2, padding=1)
    if state.resample is not None:
        x = RESAMPLERS[state.resample](x)
    if weight is None:
        return x
    if weight is conv.weight:
        return convolve(conv, x)
    return F.conv2d(x, weight, bias, padding=weight.shape[2] // 2)


def _nearest(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def _mean(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2)


RESAMPLERS: dict[str, Callable[[Tensor], Tensor]] = {
    "nearest": _nearest,
    "mean": _mean,
    "fir up": upsample2d,
    "fir down": downsample2d,
}


def _prepare_edm_conv(conv: Any) -> SimpleNamespace | None:
    parts = ("weight", "bias", "up", "down", "resample_filter", "fused_resample")
    if not all(hasattr(conv, part) for part in parts) or conv.fused_resample:
        return None
    resample = None
    if conv.up or conv.down:
        taps = conv.resample_filter.shape[-1]
        if taps == 2:
            resample = "nearest" if conv.up else "mean"
        elif taps == 4:
            resample = "fir up" if conv.up else "fir down"
        else:
            return None
    kernel = 1 if conv.weight is None else conv.weight.shape[2]
    return SimpleNamespace(resample=resample, kernel=Cached(), layer=_layer(kernel))


def _edm_conv_example(conv: Any) -> tuple[Any, ...]:
    return (image(conv.in_channels),)


EDM_CONV = Rule("convolution", _run_edm_conv, _prepare_edm_conv, _edm_conv_example)


def is_norm(module: nn.Module) -> bool:
    """Whether it is PyTorch's group norm, or ADM's, which is one in float32."""
    return isinstance(module, nn.GroupNorm) and type(module).__name__ in (
        "GroupNorm",
        "GroupNorm32",
    )
