"""Layers on `lddgan_kernels.ops`, for the networks here and for those of others.

Images are (N, C, H, W), contiguous or channels_last, and keep their layout. Here, and nowhere
above, it is decided how a layer runs on this processor: what is packed, kept, fused or left to the
layer that follows. To hooks, tracers and readers a layer is plain PyTorch.
"""

from lddgan_kernels.nn.attention import Attention, TokenConv, attend
from lddgan_kernels.nn.cached import Cached
from lddgan_kernels.nn.conv2d import (
    Conv2d,
    LateBiasConv2d,
    LeakyReLUConv2d,
    NearestUpsampleConv2d,
    Shortcut,
    StemConv2d,
    fold_nearest,
    in_fastest_layout,
)
from lddgan_kernels.nn.feature_map import FeatureMap, as_map, as_tensor
from lddgan_kernels.nn.fir import FIRDownsample, FIRUpsample
from lddgan_kernels.nn.group_norm import (
    AdaGroupNorm,
    GroupNorm,
    ResampledAdaGroupNorm,
    Style,
    group_count,
    largest_group_count,
)
from lddgan_kernels.nn.group_norm_act import GroupNormAct, folded_rows
from lddgan_kernels.nn.haar import Haar, InverseHaar
from lddgan_kernels.nn.init import variance_scaling_
from lddgan_kernels.nn.linear import Linear, PackedLinear
from lddgan_kernels.nn.mapping import ClassEmbedding, Mapping, StyleBank
from lddgan_kernels.nn.minibatch_stddev import MinibatchStddev
from lddgan_kernels.nn.module_state import ModuleState, is_hooked
from lddgan_kernels.nn.residual_conv import ResidualConv
from lddgan_kernels.nn.time_embedding import (
    TimeBank,
    TimeBiases,
    TimeEmbedding,
    timestep_embedding,
)
from lddgan_kernels.nn.tokens import image_to_tokens, tokens_to_image
from lddgan_kernels.nn.tracing import is_traced

__all__ = [
    "AdaGroupNorm",
    "Attention",
    "Cached",
    "ClassEmbedding",
    "Conv2d",
    "FIRDownsample",
    "FIRUpsample",
    "FeatureMap",
    "GroupNorm",
    "GroupNormAct",
    "Haar",
    "InverseHaar",
    "LateBiasConv2d",
    "LeakyReLUConv2d",
    "Linear",
    "Mapping",
    "MinibatchStddev",
    "ModuleState",
    "NearestUpsampleConv2d",
    "PackedLinear",
    "ResampledAdaGroupNorm",
    "ResidualConv",
    "Shortcut",
    "StemConv2d",
    "Style",
    "StyleBank",
    "TimeBank",
    "TimeBiases",
    "TimeEmbedding",
    "TokenConv",
    "as_map",
    "as_tensor",
    "attend",
    "fold_nearest",
    "folded_rows",
    "group_count",
    "image_to_tokens",
    "in_fastest_layout",
    "is_hooked",
    "is_traced",
    "largest_group_count",
    "timestep_embedding",
    "tokens_to_image",
    "variance_scaling_",
]
