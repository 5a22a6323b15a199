"""The diffusion processes: their schedules, and the samplers of few steps and of many."""

from lddgan_kernels.diffusion.few_step import sample
from lddgan_kernels.diffusion.guidance import NO_LABEL, guide
from lddgan_kernels.diffusion.interpolation import interpolate
from lddgan_kernels.diffusion.many_step import (
    SAMPLERS,
    ManyStepSampler,
    PriorSampler,
    SamplerName,
    calls,
    check_sampler,
)
from lddgan_kernels.diffusion.recording import Recorded, recorded
from lddgan_kernels.diffusion.sampler import Sampler
from lddgan_kernels.diffusion.schedule import Schedule
from lddgan_kernels.diffusion.vp import VPDiffusion
from lddgan_kernels.ops._philox import (
    STREAM_DIFFUSE_NEXT,
    STREAM_DIFFUSE_T,
    STREAM_POSTERIOR,
    STREAM_X_T,
    STREAM_Z,
    draw_seeds,
)

__all__ = [
    "NO_LABEL",
    "SAMPLERS",
    "STREAM_DIFFUSE_NEXT",
    "STREAM_DIFFUSE_T",
    "STREAM_POSTERIOR",
    "STREAM_X_T",
    "STREAM_Z",
    "ManyStepSampler",
    "PriorSampler",
    "Recorded",
    "Sampler",
    "SamplerName",
    "Schedule",
    "VPDiffusion",
    "calls",
    "check_sampler",
    "draw_seeds",
    "guide",
    "interpolate",
    "recorded",
    "sample",
]
