"""The taps of resampling by two: StyleGAN's [1, 3, 3, 1], for one axis."""

import torch
from torch import Tensor

# Normalised, and with the gain of 2 an axis of upsampling.
_TAPS = {
    (name, torch.device("cpu")): torch.tensor([1.0, 3.0, 3.0, 1.0], device="cpu") / total
    for name, total in (("down", 8), ("up", 4))
}


def taps(direction: str, device: torch.device) -> Tensor:
    """float32 (4,) of "up" or "down", copied to a device once."""
    if (direction, device) not in _TAPS:
        _TAPS[direction, device] = _TAPS[direction, torch.device("cpu")].to(device)
    return _TAPS[direction, device]
