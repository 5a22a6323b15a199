"""What the kernels of seeded noise share: where a program's elements lie, and their noise.

A program handles BLOCK counters of one sample, four elements each. LAYOUT says how they lie:
0: contiguous, elements in order; 1: channels_last, elements in logical order, so memory is strided;
2: channels_last in tiles of 4 * BLOCK / CHANNELS pixels by CHANNELS (a power of two, padded)
channels, for samples whose number of pixels is a multiple of 4.
"""

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def elements(
    programs, channels, pixels, LAYOUT: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr
):
    """(sample, counters, offsets, mask) of this program, one of `programs` a sample.

    The offsets in the batch and their mask have the shape that `normals` returns.
    """
    sample = tl.program_id(0) // programs
    block = (tl.program_id(0) % programs).to(tl.int64)
    if LAYOUT == 2:
        ROWS: tl.constexpr = BLOCK // CHANNELS
        channel = tl.arange(0, CHANNELS)
        row = block * ROWS + tl.arange(0, ROWS)
        pixel = block * (4 * ROWS) + tl.arange(0, 4 * ROWS)
        counters = channel[:, None] * (pixels // 4) + row[None, :]
        offsets = pixel[:, None] * channels + channel[None, :]
        mask = (pixel[:, None] < pixels) & (channel[None, :] < channels)
    else:
        counters = block * BLOCK + tl.arange(0, BLOCK)
        index = block * (4 * BLOCK) + tl.arange(0, 4 * BLOCK)
        mask = index < channels * pixels
        if LAYOUT == 1:
            offsets = (index % pixels) * channels + index // pixels
        else:
            offsets = index
    return sample, counters, sample.to(tl.int64) * channels * pixels + offsets, mask


@triton.jit
def box_muller(radius_word, angle_word):
    """Two normals of two uint32 words; csrc/include/lddgan/philox.h explains each line."""
    word = radius_word.to(tl.int32, bitcast=True)
    sign = word >> 31
    twice = (word ^ sign).to(tl.float32) * 4.656612873077393e-10 + 2.3283064365386963e-10
    bits = twice.to(tl.int32, bitcast=True)
    mantissa = ((bits & 0x7FFFFF) | 0x3F000000).to(tl.float32, bitcast=True)
    f = tl.where(sign != 0, twice * -0.5, mantissa - 1.0)
    exponent = ((bits >> 23) - 127) & ~sign
    p = f * 2.36163163 + 2.14767051
    p = p * f + 1.55932653
    p = p * f - 0.080431506
    p = p * f + 0.54360491
    p = p * f - 0.663818896
    p = p * f + 1.00006878
    p = p * f - 1.99999976
    radius = tl.sqrt_rn(exponent.to(tl.float32) * -1.3862943611 + p * f)

    y = (angle_word << 2).to(tl.int32, bitcast=True).to(tl.float32) * 2.3283064365386963e-10
    y2 = y * y
    s = y2 * -0.00459597912 + 0.0796831846
    s = s * y2 - 0.645964622
    s = (s * y2 + 1.57079637) * y
    c = y2 * -0.020427959 + 0.253607005
    c = c * y2 - 1.23369801
    c = c * y2 + 1.0
    quadrant = ((angle_word.to(tl.int64) + 0x20000000) >> 30).to(tl.int32) & 3
    odd = (quadrant & 1) != 0
    first = tl.where(odd, s, c)
    second = tl.where(odd, c, s)
    first = tl.where((quadrant == 1) | (quadrant == 2), -first, first)
    second = tl.where(quadrant >= 2, -second, second)
    return radius * first, radius * second


@triton.jit
def normals(counters, seed, stream, step, LAYOUT: tl.constexpr):
    """The noise of a program's elements, float32: of shape (4 * BLOCK,), or (pixels, channels)."""
    c0 = counters.to(tl.uint32)
    zero = c0 * 0
    # Triton's own rounds; its counter and key words are in the contract's order.
    w0, w1, w2, w3 = tl.philox(
        seed, c0, zero + stream.to(tl.uint32), zero + step.to(tl.uint32), zero
    )
    n0, n1 = box_muller(w0, w1)
    n2, n3 = box_muller(w2, w3)
    noise = tl.interleave(tl.interleave(n0, n2), tl.interleave(n1, n3))
    if LAYOUT == 2:
        noise = tl.trans(noise)
    return noise


def plan(batch: tuple[int, int, int], channels_last: bool) -> tuple[int, dict]:
    """(programs a sample, the kernel's constants) for samples, channels and pixels."""
    _, channels, pixels = batch
    layout, padded, block = 0, 1, 256
    if channels_last:
        padded = triton.next_power_of_2(channels)
        layout = 2 if pixels % 4 == 0 and padded <= 64 else 1
    if layout == 2:
        programs = triton.cdiv(pixels, 4 * (block // padded))
    else:
        programs = triton.cdiv(channels * pixels, 4 * block)
    return programs, {"LAYOUT": layout, "CHANNELS": padded, "BLOCK": block}


def batch_of(x: Tensor) -> tuple[tuple[int, int, int], bool]:
    """((samples, channels, pixels), whether pixel-major) of a dense (N, C, H, W)."""
    return (x.shape[0], x.shape[1], x.shape[2] * x.shape[3]), not x.is_contiguous()


@triton.jit
def table_at(table_ptr, t, num_steps, shift: tl.constexpr):
    """table[t + shift]; NaN where t lies outside 0..num_steps - 1."""
    valid = (t >= 0) & (t < num_steps)
    return tl.load(table_ptr + t + shift, mask=valid, other=float("nan"))
