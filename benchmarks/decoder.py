"""One image through the decoder of lsun-church256 (32x32x4 to 256 px), in both dtypes.

Against the published form in eager PyTorch, in both layouts: group norm, x * sigmoid(x), doubling
and convolving one after the other, attention with its whole matrix; against torch.compile of that;
and against ONNX Runtime and OpenVINO where they are installed.
"""

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import _peers
from benchmarks._harness import Case, device, fresh_compile, network_dtypes
from lddgan_kernels.models import Autoencoder, AutoencoderConfig
from lddgan_kernels.models.autoencoder_blocks import AttentionBlock, Level, ResnetBlock
from lddgan_kernels.nn import GroupNorm
from lddgan_kernels.testing import assert_error_rule

CHURCH = AutoencoderConfig(
    resolution=256,
    latent_channels=4,
    channel_multipliers=(1, 2, 4, 4),
    codebook_size=0,
    kl=True,
)
FASTEST = "fastest other"
FLOPS = 2 * 311_000_000_000  # of the published form


def norm(layer: GroupNorm, x: Tensor) -> Tensor:
    x = F.group_norm(x, layer.num_groups, layer.weight, layer.bias, eps=1e-6)
    return x if layer.activation is None else x * torch.sigmoid(x)


def conv(layer: nn.Conv2d, x: Tensor) -> Tensor:
    return F.conv2d(x, layer.weight, layer.bias, padding=layer.kernel_size[0] // 2)


def block(layer: ResnetBlock, x: Tensor) -> Tensor:
    h = conv(layer.conv1, norm(layer.norm1, x))
    h = conv(layer.conv2, norm(layer.norm2, h))
    return (x if layer.shortcut is None else conv(layer.shortcut, x)) + h


def attention(layer: AttentionBlock, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    q, k, v = conv(layer.qkv, norm(layer.norm, x)).reshape(n, 3, c, h * w).unbind(1)
    weights = torch.softmax(torch.bmm(q.transpose(1, 2), k) * c**-0.5, dim=2)
    out = torch.bmm(v, weights.transpose(1, 2)).reshape(n, c, h, w)
    return x + conv(layer.out, out)


def level(layer: Level, x: Tensor) -> Tensor:
    for i, inner in enumerate(layer.blocks):
        x = block(inner, x)
        if layer.attention:
            x = attention(layer.attention[i], x)
    if layer.resample is None:
        return x
    return conv(layer.resample.conv, F.interpolate(x, scale_factor=2.0, mode="nearest"))


def nearest(z: Tensor, codebook: Tensor) -> Tensor:
    """The nearest code of every position, by all distances."""
    vectors = z.permute(0, 2, 3, 1)
    distances = vectors.square().sum(-1, keepdim=True) + codebook.square().sum(1)
    distances = distances - 2 * vectors @ codebook.t()
    return F.embedding(distances.argmin(-1), codebook).permute(0, 3, 1, 2).contiguous()


def published(model: Autoencoder, z: Tensor) -> Tensor:
    """`model.decode(z)` as published."""
    decoder = model.decoder
    if model.quantizer is not None:
        z = nearest(z, model.quantizer.codebook)
    x = conv(decoder.conv_in, conv(model.post_quant_conv, z))
    first, middle, last = decoder.middle
    x = block(last, attention(middle, block(first, x)))
    for layer in decoder.levels:
        x = level(layer, x)
    x = conv(decoder.conv_out, norm(decoder.norm_out, x))
    return x.tanh() if decoder.tanh_out else x


def check_decoder(model: Autoencoder, z: Tensor) -> None:
    """Asserts the error rule on `model.decode(z)`.

    The plain composition is the published form in the layout that ours runs in: PyTorch's
    convolutions add up otherwise in channels_last, and are four times less exact.
    """
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    plain = published(last, z.contiguous(memory_format=torch.channels_last))
    exact = published(copy.deepcopy(model).double(), z.double())
    assert_error_rule(model.decode(z), plain, exact)


class _Decode(nn.Module):
    """`model.decode` as a module's call."""

    def __init__(self, model: Autoencoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, z: Tensor) -> Tensor:
        return self.model.decode(z)


def cases() -> Iterator[Case]:
    torch.manual_seed(0)
    model = Autoencoder(CHURCH).eval().requires_grad_(False).to(device())
    eager = copy.deepcopy(model)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    sides = {"eager": eager, "eager channels_last": last, "compile": eager}
    yield _case("float32", model, sides, {"eager": 1.5, FASTEST: 1.2})
    if torch.bfloat16 not in network_dtypes():
        return
    half = copy.deepcopy(model).bfloat16()
    fast = copy.deepcopy(half).to(memory_format=torch.channels_last)
    sides = {"eager float32": eager, "eager": half, "eager channels_last": fast, "compile": half}
    yield _case("bfloat16", fast, sides, {"eager float32": 3.0, FASTEST: 1.3})


def _case(
    name: str, model: Autoencoder, others: dict[str, Autoencoder], targets: dict[str, float]
) -> Case:
    dtype = model.last_layer.dtype

    def side(which: str, other: Autoencoder):
        form = fresh_compile(published) if which == "compile" else published
        wanted = other.last_layer.dtype

        def run(z: Tensor) -> Tensor:
            with torch.no_grad():
                return form(other, z.to(wanted))

        return run

    def ours(z: Tensor) -> Tensor:
        with torch.no_grad():
            return model.decode(z)

    def check() -> None:
        z = torch.randn(1, 4, 8, 8, device=device()).to(dtype)
        with torch.no_grad():
            check_decoder(model, z)

    z = torch.randn(1, 4, 32, 32, device=device()).to(dtype)
    sides = {"ours": ours} | {which: side(which, other) for which, other in others.items()}
    sides |= _peers.sides(_Decode(model), (z,))
    weights = sum(p.numel() for p in model.decoder.parameters())
    return Case(
        name=f"lsun-church256, 1 image, {name}",
        group=name,
        inputs=lambda: (torch.randn(1, 4, 32, 32, device=device()).to(dtype),),
        sides=sides,
        check=check,
        bytes_moved=weights * dtype.itemsize,
        flops=FLOPS,
        targets=targets,
        best={FASTEST: _peers.comparable(sides)},
    )
