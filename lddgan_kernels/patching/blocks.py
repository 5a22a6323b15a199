"""Residual blocks of other people's networks, each as its authors wrote it, in fewer passes.

All are act(norm), resampling, convolution, act(norm) with what a time embedding adds, dropout,
convolution and the sum with a shortcut; they differ in names, order of arguments and factors.
"""

import math
from types import SimpleNamespace
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from lddgan_kernels.nn import is_hooked
from lddgan_kernels.ops import ada_group_norm, downsample2d, norm_resample, upsample2d
from lddgan_kernels.patching.layers import (
    FIR,
    RESAMPLERS,
    image,
    is_norm,
    joined,
    normed,
    row,
)
from lddgan_kernels.patching.rule import Rule, activation_of


def _has(block: Any, *parts: str) -> bool:
    """Whether the block has these parts and nobody looks at what passes between its own."""
    return all(hasattr(block, part) for part in parts) and not any(map(is_hooked, block.children()))


def _common(activation: str | None, **more: Any) -> SimpleNamespace | None:
    return SimpleNamespace(activation=activation, **more) if activation else None


# diffusers: ResnetBlock2D of U-Nets and autoencoders


def _diffusers(block: Any, x: Tensor, temb: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
    state = block._lddgan
    h = normed(block.norm1, x, state.activation)
    resample = state.resample or block.upsample or block.downsample
    if resample is not None:
        h, x = resample(h), resample(x)
    h = block.conv1(h)
    rows: dict[str, Any] = {}
    if block.time_emb_proj is not None:
        temb = block.time_emb_proj(temb if block.skip_time_act else block.nonlinearity(temb))
    if temb is not None and block.time_embedding_norm == "scale_shift":
        rows["scale"], rows["shift"] = temb.chunk(2, dim=1)
    elif temb is not None and block.time_embedding_norm == "default":
        rows["bias"] = temb
    h = block.dropout(normed(block.norm2, h, state.activation, **rows))
    x = x if block.conv_shortcut is None else block.conv_shortcut(x)
    return joined(block.conv2, h, x, 1.0 / block.output_scale_factor)


def _prepare_diffusers(block: Any) -> SimpleNamespace | None:
    parts = ("norm1", "conv1", "norm2", "conv2", "nonlinearity", "time_emb_proj", "conv_shortcut",
             "output_scale_factor", "time_embedding_norm", "upsample", "downsample",
             "skip_time_act")  # fmt: skip
    if not _has(block, *parts) or not (is_norm(block.norm1) and is_norm(block.norm2)):
        return None
    return _common(activation_of(block.nonlinearity), resample=_as_fir(block))


def _as_fir(block: Any) -> Any:
    """Ours, where the block resamples by StyleGAN's filter, in an unnamed function."""
    x = image(2)
    for given, ours in ((block.upsample, upsample2d), (block.downsample, downsample2d)):
        if getattr(given, "__name__", "") == "<lambda>":
            y, z = given(x), ours(x)
            if y.shape == z.shape and y.allclose(z, rtol=1e-4, atol=1e-4):
                return ours
    return None


def _diffusers_example(block: Any) -> tuple[Any, ...]:
    emb = None if block.time_emb_proj is None else row(block.time_emb_proj.in_features)
    return image(block.in_channels), emb


# ADM (guided-diffusion), and latent diffusion's U-Net after it


def _adm(block: Any, x: Tensor, emb: Tensor) -> Tensor:
    state = block._lddgan
    h = normed(block.in_layers[0], x, state.activation)
    if block.updown:
        h, x = block.h_upd(h), block.x_upd(x)
    h = block.in_layers[-1](h)
    emb = block.emb_layers(emb).type(h.dtype)
    rows: dict[str, Any] = {"bias": emb}
    if block.use_scale_shift_norm:
        scale, shift = emb.chunk(2, dim=1)
        rows = {"scale": scale, "shift": shift}
    h = normed(block.out_layers[0], h, state.activation, **rows)
    h = block.out_layers[2](h)
    return joined(block.out_layers[3], h, block.skip_connection(x))


def _prepare_adm(block: Any) -> SimpleNamespace | None:
    parts = ("_forward", "in_layers", "emb_layers", "out_layers", "skip_connection", "updown",
             "use_scale_shift_norm")  # fmt: skip
    if not _has(block, *parts) or len(block.in_layers) != 3 or len(block.out_layers) != 4:
        return None
    if not (is_norm(block.in_layers[0]) and is_norm(block.out_layers[0])):
        return None
    found = activation_of(block.in_layers[1])
    return _common(found if found == activation_of(block.out_layers[1]) else "")


def _adm_example(block: Any) -> tuple[Any, ...]:
    return image(block.channels), row(block.emb_channels)


# EDM


def _edm(block: Any, x: Tensor, emb: Tensor) -> Tensor:
    factor = float(block.skip_scale)
    h = block.conv0(normed(block.norm0, x, "silu"))
    emb = block.affine(emb).to(x.dtype)
    rows: dict[str, Any] = {"bias": emb}
    if block.adaptive_scale:
        scale, shift = emb.chunk(2, dim=1)
        rows = {"scale": scale, "shift": shift}
    h = normed(block.norm1, h, "silu", **rows)
    h = F.dropout(h, p=block.dropout, training=block.training)
    x = joined(block.conv1, h, x if block.skip is None else block.skip(x), factor)
    if block.num_heads:
        n, c = x.shape[:2]
        qkv = block.qkv(normed(block.norm2, x, None))
        width = c // block.num_heads
        q, k, v = qkv.reshape(n * block.num_heads, width, 3, -1).unbind(2)
        weights = (q.mT @ (k / math.sqrt(width))).softmax(dim=-1)
        attended = v @ weights.mT
        x = joined(block.proj, attended.reshape(x.shape), x, factor)
    return x


def _prepare_edm(block: Any) -> SimpleNamespace | None:
    parts = ("norm0", "conv0", "affine", "norm1", "conv1", "skip", "num_heads", "adaptive_scale",
             "skip_scale", "dropout")  # fmt: skip
    return _common("silu") if _has(block, *parts) else None


def _edm_example(block: Any) -> tuple[Any, ...]:
    return image(block.in_channels), row(block.emb_channels)


# score_sde (NCSN++, DDPM++, DDPM) and DDGAN, whose norms have their rows from z


def _style(norm: Any, z: Tensor | None) -> tuple[Tensor, Tensor, int, float]:
    """(scale, shift, groups, eps)."""
    if is_norm(norm):
        return norm.weight, norm.bias, norm.num_groups, norm.eps
    scale, shift = norm.style(z).chunk(2, dim=1)
    return scale, shift, norm.norm.num_groups, norm.norm.eps


def _score_sde(
    block: Any, x: Tensor, temb: Tensor | None = None, z: Tensor | None = None
) -> Tensor:
    state = block._lddgan
    scale, shift, groups, eps = _style(block.GroupNorm_0, z)
    if state.resample in ("up", "down"):
        h, x = norm_resample(
            x, scale, shift, groups, state.resample, eps=eps, activation=state.activation
        )
    else:
        h = ada_group_norm(x, scale, shift, groups, eps=eps, activation=state.activation)
        if state.resample is not None:
            h, x = (RESAMPLERS[state.resample](t) for t in (h, x))
    h = block.Conv_0(h)
    scale, shift, groups, eps = _style(block.GroupNorm_1, z)
    bias = None if temb is None else block.Dense_0(block.act(temb))
    h = ada_group_norm(h, scale, shift, groups, eps=eps, activation=state.activation, bias=bias)
    x = x if state.shortcut is None else getattr(block, state.shortcut)(x)
    factor = math.sqrt(0.5) if getattr(block, "skip_rescale", False) else 1.0
    return joined(block.Conv_1, block.Dropout_0(h), x, factor)


def _prepare_score_sde(block: Any) -> SimpleNamespace | None:
    if not _has(block, "GroupNorm_0", "Conv_0", "GroupNorm_1", "Conv_1", "Dropout_0", "act"):
        return None
    for norm in (block.GroupNorm_0, block.GroupNorm_1):
        if not is_norm(norm) and not (hasattr(norm, "style") and hasattr(norm, "norm")):
            return None
    up, down = getattr(block, "up", False), getattr(block, "down", False)
    resample = None
    if up or down:
        if block.fir and tuple(block.fir_kernel) != FIR:
            return None
        resample = ("up" if up else "down") if block.fir else ("nearest" if up else "mean")
    shortcuts = [name for name in ("Conv_2", "NIN_0") if name in block._modules]
    shortcut = shortcuts[0] if shortcuts else None
    activation = activation_of(block.act)
    fused = activation if activation == "silu" else ""  # norm_resample knows no other
    return _common(fused, resample=resample, shortcut=shortcut)


def _score_sde_example(block: Any) -> tuple[Any, ...]:
    dense = block._modules.get("Dense_0")
    temb = None if dense is None else row(dense.in_features)
    arguments = (image(block.Conv_0.in_channels), temb)
    if is_norm(block.GroupNorm_0):
        return arguments
    return *arguments, row(block.GroupNorm_0.style.in_features)


# The autoencoders of latent diffusion and VQGAN


def _latent_diffusion(block: Any, x: Tensor, temb: Tensor | None = None, **_: Any) -> Tensor:
    activation = block._lddgan.activation
    h = block.conv1(normed(block.norm1, x, activation))
    bias = None if temb is None else block.temb_proj(F.silu(temb))
    h = block.dropout(normed(block.norm2, h, activation, bias=bias))
    if block.in_channels != block.out_channels:
        x = block.conv_shortcut(x) if block.use_conv_shortcut else block.nin_shortcut(x)
    return joined(block.conv2, h, x)


def _prepare_latent_diffusion(block: Any) -> SimpleNamespace | None:
    parts = ("norm1", "conv1", "norm2", "conv2", "dropout", "use_conv_shortcut", "in_channels")
    if not _has(block, *parts) or not (is_norm(block.norm1) and is_norm(block.norm2)):
        return None
    return _common("silu")


def _latent_diffusion_example(block: Any) -> tuple[Any, ...]:
    proj = block._modules.get("temb_proj")
    return image(block.in_channels), None if proj is None else row(proj.in_features)


def _block(run: Any, prepare: Any, example: Any, method: str = "forward") -> Rule:
    return Rule("residual block", run, prepare, example, method)


DIFFUSERS = _block(_diffusers, _prepare_diffusers, _diffusers_example)
ADM = _block(_adm, _prepare_adm, _adm_example, "_forward")
EDM = _block(_edm, _prepare_edm, _edm_example)
SCORE_SDE = _block(_score_sde, _prepare_score_sde, _score_sde_example)
LATENT_DIFFUSION = _block(_latent_diffusion, _prepare_latent_diffusion, _latent_diffusion_example)
