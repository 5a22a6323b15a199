"""What `precision` means on a device."""

import warnings
from dataclasses import replace

import torch

from lddgan_kernels._bfloat16 import multiplies_bfloat16, slowdown
from lddgan_kernels.trainer.config import Config


def resolve(config: Config, device: torch.device) -> tuple[Config, str]:
    """The configuration with "auto" replaced by what suits the device, and a sentence why.

    A named bfloat16 that the device only emulates stays, with one warning that tells the cost.
    """
    suits, why = multiplies_bfloat16(device)
    if config.precision == "auto":
        config = replace(config, precision="bfloat16" if suits else "float32")
        return config, f"precision {config.precision}: {why}"
    if config.precision == "bfloat16" and not suits:
        warnings.warn(
            f"precision bfloat16 is emulated here ({why}): a convolution takes "
            f"{slowdown(device):.1f} times as long as in float32, which --precision auto takes",
            stacklevel=2,
        )
    return config, f"precision {config.precision}: as named"


def resolve_for_inference(config: Config, device: torch.device) -> Config:
    """The configuration of a trained network; float32 where its own precision is emulated."""
    suits, why = multiplies_bfloat16(device)
    if config.precision == "bfloat16" and not suits:
        warnings.warn(f"trained in bfloat16, runs in float32 here: {why}", stacklevel=2)
        return replace(config, precision="float32")
    return resolve(config, device)[0]


def autocast(config: Config, device: torch.device) -> torch.autocast:
    """The autocast that the configuration asks for; weights and losses stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=uses_bfloat16(config, device))


def uses_bfloat16(config: Config, device: torch.device) -> bool:
    """Whether the configuration, "auto" among others, means bfloat16 on the device."""
    if config.precision == "auto":
        return multiplies_bfloat16(device)[0]
    return config.precision == "bfloat16"
