"""The ops: one file each, holding its documentation, reference, gradient and backend choice."""

from lddgan_kernels.ops.ada_group_norm import ada_group_norm
from lddgan_kernels.ops.residual_scale import residual_scale

__all__ = ["ada_group_norm", "residual_scale"]
