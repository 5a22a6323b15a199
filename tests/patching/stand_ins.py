"""Blocks with the names, parts and arithmetic of those that other libraries have.

Written for these tests alone, as plainly as can be; the libraries themselves are tried where they
are installed (test_libraries.py).
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from lddgan_kernels import use_backend
from lddgan_kernels.ops import downsample2d, upsample2d


def conv3x3(c, d):
    return nn.Conv2d(c, d, 3, padding=1)


def spread(rows):
    return rows[:, :, None, None]


def fir(x, resample):
    """StyleGAN's filter by plain PyTorch."""
    with use_backend("reference"):
        return resample(x)


# diffusers


class ResnetBlock2D(nn.Module):
    def __init__(
        self, c, d, *, norm="default", emb=12, up=False, down=False, fir_=False, factor=1.0
    ):
        super().__init__()
        self.in_channels, self.time_embedding_norm = c, norm
        self.output_scale_factor, self.skip_time_act = factor, False
        self.norm1, self.norm2 = nn.GroupNorm(4, c, eps=1e-6), nn.GroupNorm(4, d, eps=1e-6)
        self.conv1, self.conv2 = conv3x3(c, d), conv3x3(d, d)
        width = {"default": d, "scale_shift": 2 * d, "group": d}[norm]
        self.time_emb_proj = nn.Linear(emb, width) if emb else None
        self.dropout, self.nonlinearity = nn.Dropout(0.5), nn.SiLU()
        self.conv_shortcut = nn.Conv2d(c, d, 1) if c != d else None
        self.upsample = self.downsample = None
        if fir_:
            self.upsample = (lambda x: fir(x, upsample2d)) if up else None
            self.downsample = (lambda x: fir(x, downsample2d)) if down else None
        elif up or down:
            self.upsample = nn.Upsample(scale_factor=2) if up else None
            self.downsample = nn.AvgPool2d(2) if down else None

    def forward(self, input_tensor, temb=None):
        x, h = input_tensor, self.nonlinearity(self.norm1(input_tensor))
        for resample in (self.upsample, self.downsample):
            if resample is not None:
                x, h = resample(x), resample(h)
        h = self.conv1(h)
        if self.time_emb_proj is not None:
            temb = spread(self.time_emb_proj(self.nonlinearity(temb)))
        if self.time_embedding_norm == "scale_shift":
            scale, shift = temb.chunk(2, 1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            added = temb is not None and self.time_embedding_norm == "default"
            h = self.norm2(h + temb if added else h)
        h = self.conv2(self.dropout(self.nonlinearity(h)))
        x = x if self.conv_shortcut is None else self.conv_shortcut(x)
        return (x + h) / self.output_scale_factor


class Upsample2D(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv = conv3x3(c, c + 1)

    def forward(self, x, output_size=None):
        size = output_size or [2 * side for side in x.shape[2:]]
        return self.conv(F.interpolate(x, size=size, mode="nearest"))


class FirUpsample2D(nn.Module):
    def __init__(self, taps=(1, 3, 3, 1)):
        super().__init__()
        self.fir_kernel = taps

    def forward(self, x):
        return fir(x, upsample2d)


class FirDownsample2D(FirUpsample2D):
    def forward(self, x):
        return fir(x, downsample2d)


class Decoder(nn.Module):
    """The end of diffusers' networks."""

    def __init__(self):
        super().__init__()
        self.up, self.widen = Upsample2D(32), nn.Conv2d(33, 48, 1)
        self.block = ResnetBlock2D(48, 48, emb=0)
        self.conv_norm_out, self.conv_act = nn.GroupNorm(4, 48, eps=1e-6), nn.SiLU()
        self.conv_out = conv3x3(48, 3)

    def forward(self, x):
        x = self.block(self.widen(self.up(x)))
        return self.conv_out(self.conv_act(self.conv_norm_out(x)))


# ADM


class GroupNorm32(nn.GroupNorm):
    def forward(self, x):
        return super().forward(x.float()).type(x.dtype)


class ResBlock(nn.Module):
    def __init__(self, c, d, *, scale_shift=True, updown=False):
        super().__init__()
        self.channels, self.emb_channels = c, 12
        self.use_scale_shift_norm, self.updown = scale_shift, updown
        self.in_layers = nn.Sequential(GroupNorm32(4, c), nn.SiLU(), conv3x3(c, d))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(12, 2 * d if scale_shift else d))
        self.out_layers = nn.Sequential(
            GroupNorm32(4, d), nn.SiLU(), nn.Dropout(0.1), conv3x3(d, d)
        )
        self.h_upd = self.x_upd = nn.Upsample(scale_factor=2) if updown else nn.Identity()
        self.skip_connection = nn.Identity() if c == d else nn.Conv2d(c, d, 1)

    def forward(self, x, emb):
        return self._forward(x, emb)

    def _forward(self, x, emb):
        h = self.in_layers[-1](self.h_upd(self.in_layers[:-1](x)))
        rows = spread(self.emb_layers(emb))
        if self.use_scale_shift_norm:
            scale, shift = rows.chunk(2, 1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + rows)
        return self.skip_connection(self.x_upd(x)) + h


# EDM


class GroupNorm(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.num_groups, self.eps = 4, 1e-5
        self.weight, self.bias = nn.Parameter(torch.ones(c)), nn.Parameter(torch.zeros(c))

    def forward(self, x):
        rows = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.group_norm(x, self.num_groups, *rows, self.eps)


class Conv2d(nn.Module):
    def __init__(self, c, d, kernel, *, up=False, down=False, taps=(1, 1)):
        super().__init__()
        self.in_channels, self.up, self.down, self.fused_resample = c, up, down, False
        self.weight = nn.Parameter(torch.randn(d, c, kernel, kernel) / 9) if kernel else None
        self.bias = nn.Parameter(torch.zeros(d)) if kernel else None
        taps = torch.tensor(taps, dtype=torch.float32)
        taps = taps.outer(taps)[None, None] / taps.sum() ** 2
        self.register_buffer("resample_filter", taps if up or down else None)

    def forward(self, x):
        if self.up or self.down:
            taps, c = self.resample_filter.to(x.dtype), self.in_channels
            options = {"stride": 2, "padding": (taps.shape[-1] - 1) // 2, "groups": c}
            if self.up:
                x = F.conv_transpose2d(x, (4 * taps).tile(c, 1, 1, 1), **options)
            else:
                x = F.conv2d(x, taps.tile(c, 1, 1, 1), **options)
        if self.weight is None:
            return x
        x = F.conv2d(x, self.weight.to(x.dtype), padding=self.weight.shape[2] // 2)
        return x + self.bias.to(x.dtype)[:, None, None]


class UNetBlock(nn.Module):
    def __init__(self, c, d, *, adaptive=True, heads=0, **resample):
        super().__init__()
        self.in_channels, self.emb_channels, self.num_heads = c, 12, heads
        self.adaptive_scale, self.skip_scale, self.dropout = adaptive, math.sqrt(0.5), 0.1
        self.norm0, self.norm1 = GroupNorm(c), GroupNorm(d)
        self.conv0, self.conv1 = Conv2d(c, d, 3, **resample), Conv2d(d, d, 3)
        self.affine = nn.Linear(12, 2 * d if adaptive else d)
        self.skip = Conv2d(c, d, 1 if c != d else 0, **resample) if c != d or resample else None
        if heads:
            self.norm2, self.qkv, self.proj = GroupNorm(d), Conv2d(d, 3 * d, 1), Conv2d(d, d, 1)

    def forward(self, x, emb):
        h, rows = self.conv0(F.silu(self.norm0(x))), spread(self.affine(emb)).to(x.dtype)
        if self.adaptive_scale:
            scale, shift = rows.chunk(2, 1)
            h = F.silu(self.norm1(h) * (scale + 1) + shift)
        else:
            h = F.silu(self.norm1(h + rows))
        h = self.conv1(F.dropout(h, self.dropout, self.training))
        x = (h + (x if self.skip is None else self.skip(x))) * self.skip_scale
        if self.num_heads:
            n, c = x.shape[0] * self.num_heads, x.shape[1] // self.num_heads
            q, k, v = self.qkv(self.norm2(x)).reshape(n, c, 3, -1).unbind(2)
            weights = torch.softmax(q.mT @ k / math.sqrt(c), dim=2)
            x = (self.proj((v @ weights.mT).reshape(x.shape)) + x) * self.skip_scale
        return x


# score_sde and DDGAN


class AdaptiveGroupNorm(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm = nn.GroupNorm(4, c, affine=False, eps=1e-6)
        self.style = nn.Linear(6, 2 * c)

    def forward(self, x, style):
        gamma, beta = spread(self.style(style)).chunk(2, 1)
        return gamma * self.norm(x) + beta


class ResnetBlockBigGANpp(nn.Module):
    adaptive = False

    def __init__(self, c, d, *, up=False, down=False, fir=False, taps=(1, 3, 3, 1)):
        super().__init__()

        def norm(width):
            return AdaptiveGroupNorm(width) if self.adaptive else nn.GroupNorm(4, width, eps=1e-6)

        self.act, self.up, self.down = nn.SiLU(), up, down
        self.fir, self.fir_kernel, self.skip_rescale = fir, taps, True
        self.GroupNorm_0, self.Conv_0, self.Dense_0 = norm(c), conv3x3(c, d), nn.Linear(12, d)
        self.GroupNorm_1, self.Dropout_0, self.Conv_1 = norm(d), nn.Dropout(0.1), conv3x3(d, d)
        if c != d or up or down:
            self.Conv_2 = nn.Conv2d(c, d, 1)

    def forward(self, x, temb=None, zemb=None):
        style = (zemb,) if self.adaptive else ()
        h = self.act(self.GroupNorm_0(x, *style))
        if self.up:
            double = (lambda t: fir(t, upsample2d)) if self.fir else nn.Upsample(scale_factor=2)
            x, h = double(x), double(h)
        if self.down:
            halve = (lambda t: fir(t, downsample2d)) if self.fir else nn.AvgPool2d(2)
            x, h = halve(x), halve(h)
        h = self.Conv_0(h) + spread(self.Dense_0(self.act(temb)))
        h = self.Conv_1(self.Dropout_0(self.act(self.GroupNorm_1(h, *style))))
        return ((self.Conv_2(x) if hasattr(self, "Conv_2") else x) + h) / math.sqrt(2)


class ResnetBlockBigGANpp_Adagn(ResnetBlockBigGANpp):
    adaptive = True


# Latent diffusion


class ResnetBlock(nn.Module):
    def __init__(self, c, d):
        super().__init__()
        self.in_channels, self.out_channels, self.use_conv_shortcut = c, d, False
        self.norm1, self.norm2 = nn.GroupNorm(4, c, eps=1e-6), nn.GroupNorm(4, d, eps=1e-6)
        self.conv1, self.conv2, self.dropout = conv3x3(c, d), conv3x3(d, d), nn.Dropout(0.1)
        if c != d:
            self.nin_shortcut = nn.Conv2d(c, d, 1)

    def forward(self, x, temb=None):
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h
