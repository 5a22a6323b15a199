"""The ops: one file each, holding its documentation, reference, gradient and backend choice."""

from lddgan_kernels.ops.residual_scale import residual_scale

__all__ = ["residual_scale"]
