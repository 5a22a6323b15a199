"""Tokens (N, T, C) as a channels_last image (N, C, T, 1) of T rows, and back: both are views."""

from torch import Tensor


def tokens_to_image(tokens: Tensor) -> Tensor:
    """(N, T, C) to (N, C, T, 1)."""
    return tokens.transpose(1, 2).unsqueeze(-1)


def image_to_tokens(image: Tensor) -> Tensor:
    """(N, C, T, 1) to (N, T, C)."""
    return image.squeeze(-1).transpose(1, 2)
