"""The diffusion process: its schedule and the few-step sampler."""

from lddgan_kernels.diffusion.few_step import sample
from lddgan_kernels.diffusion.recording import Recorded, recorded
from lddgan_kernels.diffusion.sampler import Sampler
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
    "Recorded",
    "Sampler",
    "Schedule",
    "draw_seeds",
    "recorded",
    "sample",
]
