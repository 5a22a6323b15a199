"""Counter-based normal noise: Philox4x32-10 and Box-Muller, in plain integer and float64 torch.

The noise of a sample is a function of its seed alone (Salmon et al. 2011, "Parallel random
numbers: as easy as 1, 2, 3"):

    key     = (low word, high word) of the sample's int64 seed
    counter = (i // 4, stream, step, 0), i the element's index in the sample, in (c, h, w) order
    words   = philox4x32(counter, key)              four uint32
    u       = (words[0] + 1/2) / 2^32               in (0, 1), so that log u is finite
    theta   = 2 pi words[1] / 2^32
    element 4j, 4j+1 = sqrt(-2 log u) * (cos theta, sin theta); words 2, 3 make 4j+2, 4j+3 alike

Every backend computes this within 2e-6 of its float64 value. For that, the angle is reduced to
[-pi/4, pi/4) in integers and log u near u = 1 is taken of the exact 1 - u.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# The second counter word: which noise of a sample this is. `step` (the third) numbers the uses of
# one stream, such as the steps t of a sampler or the iterations of a trainer.
STREAM_X_T = 0  # where sampling starts
STREAM_Z = 1  # the generator's latent z
STREAM_POSTERIOR = 2  # posterior_sample
STREAM_DIFFUSE_T = 3  # diffuse_pair: x_0 -> x_t
STREAM_DIFFUSE_NEXT = 4  # diffuse_pair: x_t -> x_{t+1}

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)


def philox4x32(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten rounds of Philox4x32.

    Args:
        counter: four int64 tensors with values 0..2^32-1; they broadcast together with `key`.
        key: two int64 tensors with values 0..2^32-1.

    Returns:
        Four int64 tensors with values 0..2^32-1.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # The product of two 32-bit words wraps in int64; its 64 bits are right all the same.
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = ((second >> 32) & _MASK) ^ c1 ^ k0
        c2 = ((first >> 32) & _MASK) ^ c3 ^ k1
        c1, c3 = second & _MASK, first & _MASK
        k0, k1 = (k0 + _KEY_STEPS[0]) & _MASK, (k1 + _KEY_STEPS[1]) & _MASK
    return c0, c1, c2, c3


def box_muller(radius_word: Tensor, angle_word: Tensor) -> tuple[Tensor, Tensor]:
    """Two independent standard normals, float64, of two uint32 words held in int64."""
    radius = ((radius_word.double() + 0.5) * 2.0**-32).log().mul(-2.0).sqrt()
    shifted = angle_word + (1 << 29)
    quadrant = (shifted >> 30) & 3
    angle = ((shifted & ((1 << 30) - 1)) - (1 << 29)).double() * (math.pi * 2.0**-31)
    cosine, sine = angle.cos(), angle.sin()
    odd = (quadrant & 1).bool()
    first = torch.where(odd, sine, cosine) * torch.where((quadrant == 1) | (quadrant == 2), -1, 1)
    second = torch.where(odd, cosine, sine) * torch.where(quadrant >= 2, -1, 1)
    return radius * first, radius * second


def normal_reference(
    shape: Sequence[int], seeds: Tensor, stream: int, step: int, dtype: torch.dtype
) -> Tensor:
    """The noise of `seeds` (int64, (N,)) as a contiguous tensor of `shape` (N, ...) and `dtype`."""
    size = math.prod(shape[1:])
    count = (size + 3) // 4
    index = torch.arange(count, device=seeds.device)
    constants = [torch.full_like(index[:1], value) for value in (stream, step, 0)]
    key = (seeds & _MASK)[:, None], ((seeds >> 32) & _MASK)[:, None]
    words = philox4x32((index, constants[0], constants[1], constants[2]), key)
    pairs = (*box_muller(words[0], words[1]), *box_muller(words[2], words[3]))
    noise = torch.stack(pairs, dim=-1).reshape(seeds.shape[0], 4 * count)[:, :size]
    return noise.reshape(tuple(shape)).to(dtype)


def draw_seeds(
    count: int, device: torch.device | str = "cpu", generator: torch.Generator | None = None
) -> Tensor:
    """`count` int64 seeds from a `torch.Generator` (the device's default one), without a sync."""
    return torch.randint(0, 2**63 - 1, (count,), device=device, generator=generator)
