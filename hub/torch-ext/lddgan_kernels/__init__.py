"""The ops of lddgan_kernels, and layers that call them."""

from . import layers
from ._backend import use_backend
from .ops import (
    ada_group_norm,
    bias_act,
    conv3x3,
    diffuse_pair,
    downsample2d,
    haar_dwt2d,
    haar_idwt2d,
    minibatch_stddev,
    nearest_code,
    norm_resample,
    pixel_norm,
    posterior_sample,
    residual_scale,
    seeded_normal,
    upfirdn2d,
    upsample2d,
)

__all__ = [
    "ada_group_norm",
    "bias_act",
    "conv3x3",
    "diffuse_pair",
    "downsample2d",
    "haar_dwt2d",
    "haar_idwt2d",
    "layers",
    "minibatch_stddev",
    "nearest_code",
    "norm_resample",
    "pixel_norm",
    "posterior_sample",
    "residual_scale",
    "seeded_normal",
    "upfirdn2d",
    "upsample2d",
    "use_backend",
]
