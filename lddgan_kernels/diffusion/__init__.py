"""The diffusion process: its schedule and the few-step sampler."""

from lddgan_kernels.diffusion.graph import Sampler
from lddgan_kernels.diffusion.sampler import sample
from lddgan_kernels.diffusion.schedule import Schedule
from lddgan_kernels.ops._philox import (
    STREAM_DIFFUSE_NEXT,
    STREAM_DIFFUSE_T,
    STREAM_POSTERIOR,
    STREAM_X_T,
    STREAM_Z,
    draw_seeds,
)

__all__ = [
    "STREAM_DIFFUSE_NEXT",
    "STREAM_DIFFUSE_T",
    "STREAM_POSTERIOR",
    "STREAM_X_T",
    "STREAM_Z",
    "Sampler",
    "Schedule",
    "draw_seeds",
    "sample",
]
