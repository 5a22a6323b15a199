"""How the Triton kernels of `ada_group_norm` read a tile and add up its groups."""

import triton
import triton.language as tl

from lddgan_kernels.triton._common import sigmoid


@triton.jit
def _channels(first_group, GB: tl.constexpr, CPG: tl.constexpr, CB: tl.constexpr):
    """A tile's channels (CB, 1), their mask, and which of its groups each is in (CB,)."""
    inside = tl.arange(0, CB)
    channel = first_group * CPG + inside
    return channel[:, None], (inside < GB * CPG)[:, None], inside // CPG


@triton.jit
def _to_groups(value, group_of, GB: tl.constexpr):
    """Sums (CB, 1) over the channels of each group: (GB,)."""
    members = group_of[None, :] == tl.arange(0, GB)[:, None]
    return tl.sum(tl.where(members, tl.trans(value), 0.0), axis=1)


@triton.jit
def _to_channels(value, group_of, GB: tl.constexpr):
    """Gives each channel its group's value: (GB,) -> (CB, 1)."""
    members = group_of[:, None] == tl.arange(0, GB)[None, :]
    return tl.sum(tl.where(members, value[None, :], 0.0), axis=1)[:, None]


@triton.jit
def _offset(channel, position, channels, hw, CHANNELS_LAST: tl.constexpr):
    """Where an element lies inside its sample."""
    if CHANNELS_LAST:
        return position * channels + channel
    else:
        return channel * hw + position


@triton.jit
def _read(
    x_ptr, x2_ptr, bias_ptr, bias_stride, n, c1, c2, hw, channel, position, channel_mask, end,
    CHANNELS_LAST: tl.constexpr, HAS_X2: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """cat(x + bias, x2) over a tile in float32, zero outside [.., end)."""
    n = n.to(tl.int64)
    mask = channel_mask & (position < end)
    first = mask & (channel < c1) if HAS_X2 else mask
    offset = _offset(channel, position, c1, hw, CHANNELS_LAST)
    value = tl.load(x_ptr + n * c1 * hw + offset, mask=first, other=0.0).to(tl.float32)
    if HAS_BIAS:
        bias = tl.load(
            bias_ptr + n * bias_stride + channel, mask=channel_mask & (channel < c1), other=0.0
        )
        value = tl.where(first, value + bias.to(tl.float32), 0.0)
    if HAS_X2:
        offset2 = _offset(channel - c1, position, c2, hw, CHANNELS_LAST)
        second = mask & (channel >= c1)
        value += tl.load(x2_ptr + n * c2 * hw + offset2, mask=second, other=0.0).to(tl.float32)
    return value


@triton.jit
def _rows(ptr, n, stride, channel, mask):
    """scale or shift of a tile's channels (CB, 1) in float32; stride 0 for an affine norm."""
    return tl.load(ptr + n.to(tl.int64) * stride + channel, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _group_sum(value, group_of, GB: tl.constexpr):
    """Sum of a tile over the positions and channels of each group: (GB,)."""
    return _to_groups(tl.sum(value, axis=1)[:, None], group_of, GB)


@triton.jit
def _through_activation(x_hat, scale, shift, grad, SILU: tl.constexpr, EXACT: tl.constexpr):
    """The gradient before the activation."""
    if SILU:
        y = x_hat * scale + shift
        s = sigmoid(y, EXACT)
        grad = grad * (s * (1.0 + y * (1.0 - s)))
    return grad


@triton.jit
def _part_sum(sums_ptr, row, i, mask):
    """Adds up the parts of one sum: (CB, 1)."""
    return tl.sum(tl.load(sums_ptr + row + i, mask=mask, other=0.0), axis=1)[:, None]
