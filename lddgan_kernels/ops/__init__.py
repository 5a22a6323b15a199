"""The ops: one file each, holding its documentation, reference, gradient and backend choice."""

from lddgan_kernels.ops.ada_group_norm import ada_group_norm
from lddgan_kernels.ops.bias_act import bias_act
from lddgan_kernels.ops.conv3x3 import conv3x3
from lddgan_kernels.ops.diffuse_pair import diffuse_pair
from lddgan_kernels.ops.haar import haar_dwt2d, haar_idwt2d
from lddgan_kernels.ops.minibatch_stddev import minibatch_stddev
from lddgan_kernels.ops.nearest_code import nearest_code
from lddgan_kernels.ops.norm_resample import norm_resample
from lddgan_kernels.ops.packed_conv2d import pack_conv2d, packed_conv2d
from lddgan_kernels.ops.pixel_norm import pixel_norm
from lddgan_kernels.ops.posterior_sample import posterior_sample
from lddgan_kernels.ops.residual_scale import residual_scale, residual_scale_moments
from lddgan_kernels.ops.seeded_normal import seeded_normal
from lddgan_kernels.ops.upfirdn2d import downsample2d, upfirdn2d, upsample2d

__all__ = [
    "ada_group_norm",
    "bias_act",
    "conv3x3",
    "diffuse_pair",
    "downsample2d",
    "haar_dwt2d",
    "haar_idwt2d",
    "minibatch_stddev",
    "nearest_code",
    "norm_resample",
    "pack_conv2d",
    "packed_conv2d",
    "pixel_norm",
    "posterior_sample",
    "residual_scale",
    "residual_scale_moments",
    "seeded_normal",
    "upfirdn2d",
    "upsample2d",
]
