"""Published generators and discriminators: their options and names, in ours.

A published name is tied to ours by an `Entry`: the whole of one of our parameters, or some rows of
one that joins many published layers (the banks, the q, k and v of attention). The entries follow
from a network's structure, and serve both ways.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lddgan_kernels.interop.checkpoint import check_fits
from lddgan_kernels.interop.options import flag, integer, integers, number, wrong
from lddgan_kernels.models import (
    Discriminator,
    DiscriminatorConfig,
    Generator,
    GeneratorConfig,
    WaveletGenerator,
)
from lddgan_kernels.models.blocks import Block, PyramidDown
from lddgan_kernels.models.wavelet_generator import WaveletPyramidDown, WaveletUpBlock
from lddgan_kernels.nn import Attention

# Names by which the networks are found in a checkpoint.
FIRST_OF_GENERATORS = "all_modules.0.weight"
FIRST_OF_DISCRIMINATORS = "start_conv.weight"

GENERATORS = {"NCSNpp": Generator, "WaveletNCSNpp": WaveletGenerator}
DISCRIMINATORS = ("Discriminator_small", "Discriminator_large")

# Published options of which one value is supported.
FIXED = {
    "resblock_type": "biggan",
    "progressive": "none",
    "embedding_type": "positional",
    "conditional": True,
    "fir_kernel": [1, 3, 3, 1],
    "use_local_loss": False,
    "no_use_fbn": False,
    "no_use_freq": False,
    "no_use_residual": False,
}


class Entry(NamedTuple):
    """One published parameter.

    Attributes:
        published: its name.
        ours: the name of the parameter of ours that holds it.
        rows: which rows of ours; None: all.
        transposed: whether the published one is (in, out).
    """

    published: str
    ours: str
    rows: tuple[int, int] | None = None
    transposed: bool = False

    def of(self, state: Mapping[str, Tensor]) -> Tensor:
        """The published parameter, as a view of ours."""
        value = state[self.ours]
        if self.rows is not None:
            value = value[self.rows[0] : self.rows[1]]
        return value.t() if self.transposed else value


def generator_config(options: Mapping[str, Any], state: Mapping[str, Tensor]) -> GeneratorConfig:
    """Our configuration for published options; missing ones take the published defaults.

    The published scripts disagree on the default of `num_channels`: where it is missing the weights
    tell. `current_resolution` counts before `image_size`, which those scripts overwrite with it.
    """
    _check_fixed(options)
    pyramid = str(options.get("progressive_input", "residual")).lower()
    if pyramid not in ("residual", "none"):
        raise wrong("progressive_input", "'residual' or 'none'", pyramid)
    if not options.get("ch_mult"):
        raise ValueError("load_published: options must hold ch_mult, which has no default")
    patch = integer(options, "patch_size", 1)
    if options.get("num_channels") is None:
        first = state.get("all_modules.2.weight")
        if first is None or first.ndim != 4:
            raise ValueError("load_published: options must hold num_channels")
        channels = first.shape[1] // patch**2
    else:
        channels = integer(options, "num_channels", 0)
    folded = channels * patch**2  # which is what num_out_channels counts
    if options.get("num_out_channels", folded) != folded:
        raise wrong(
            "num_out_channels",
            f"num_channels * patch_size^2 ({folded})",
            options["num_out_channels"],
        )
    size = "current_resolution" if "current_resolution" in options else "image_size"
    return GeneratorConfig(
        channels=channels,
        resolution=integer(options, size, 32),
        base_channels=integer(options, "num_channels_dae", 128),
        channel_multipliers=integers(options, "ch_mult", ()),
        num_blocks=integer(options, "num_res_blocks", 2),
        attention_resolutions=integers(options, "attn_resolutions", (16,)),
        z_dim=integer(options, "nz", 100),
        mapping_layers=integer(options, "n_mlp", 3, low=0),
        mapping_width=integer(options, "z_emb_dim", 256),
        dropout=number(options, "dropout", 0.0),
        tanh_out=not flag(options, "not_use_tanh", False),
        patch_size=patch,
        input_pyramid=pyramid == "residual",
        fir=flag(options, "fir", True),
        skip_rescale=flag(options, "skip_rescale", True),
        centered=flag(options, "centered", True),
    )


def discriminator_config(
    network: str, options: Mapping[str, Any], state: Mapping[str, Tensor]
) -> DiscriminatorConfig:
    """Our configuration for published options; missing ones take the published defaults.

    `nc` counts the channels of x and x_t together; where it is missing the weights tell. As in the
    published code, `num_layers` beyond what a network has changes nothing.
    """
    _check_fixed(options)
    small = network == "Discriminator_small"
    patch = integer(options, "patch_size", 1)
    if options.get("nc") is None:
        stem = state.get("start_conv.weight")
        if stem is None or stem.ndim != 4:
            raise ValueError("load_published: options must hold nc")
        nc = stem.shape[1] // patch**2
    else:
        nc = integer(options, "nc", 0)
    if nc % 2:
        raise wrong("nc", "even: it counts the channels of x and x_t", nc)
    most = 4 if small else 6
    return DiscriminatorConfig(
        kind="small" if small else "large",
        channels=nc // 2,
        base_channels=integer(options, "ngf", 64 if small else 32),
        time_embedding=integer(options, "t_emb_dim", 128),
        num_blocks=min(max(integer(options, "num_layers", most), 3), most),
        patch_size=patch,
    )


def _check_fixed(options: Mapping[str, Any]) -> None:
    for name, only in FIXED.items():
        value = options.get(name, only)
        if isinstance(value, str):
            value = value.lower()
        elif isinstance(value, tuple):
            value = list(value)
        if value != only:
            raise wrong(name, repr(only), repr(value))


def entries_of(module: Generator | Discriminator) -> list[Entry]:
    """The published parameters of one of our networks."""
    if isinstance(module, Generator):
        return list(_generator_entries(module))
    return list(_discriminator_entries(module))


def _generator_entries(module: Generator) -> Iterator[Entry]:
    names = {part: name for name, part in module.named_modules()}
    starts = [0]
    for size in module.style_bank.sizes:
        starts.append(starts[-1] + size)
    biases = [0]
    for size in module.time_bank.sizes:
        biases.append(biases[-1] + size)
    for i, part in enumerate(_published_order(module)):
        published, ours = f"all_modules.{i}", names[part]
        if isinstance(part, Block):
            # Four sizes a block: scale and shift of either norm, which lie side by side.
            first, second, end = starts[4 * part.index : 4 * part.index + 5 : 2]
            bias = (biases[part.index], biases[part.index + 1])
            for kind in ("weight", "bias"):
                for norm, rows in (("0", (first, second)), ("1", (second, end))):
                    yield Entry(
                        f"{published}.GroupNorm_{norm}.style.{kind}", f"style_bank.{kind}", rows
                    )
                yield Entry(f"{published}.Dense_0.{kind}", f"time_bank.{kind}", bias)
            yield Entry(f"{published}.Conv_0.weight", f"{ours}.conv0.weight")
            yield Entry(f"{published}.Conv_0.bias", "time_bank.conv_bias", bias)
            yield from _whole(f"{published}.Conv_1", f"{ours}.conv1")
            if part.shortcut is not None:
                yield from _whole(f"{published}.Conv_2", f"{ours}.shortcut")
            if isinstance(part, WaveletUpBlock):
                yield from _whole(f"{published}.convH_0", f"{ours}.conv_high")
        elif isinstance(part, Attention):
            yield from _attention_entries(published, ours, part.norm.weight.shape[0])
        elif isinstance(part, PyramidDown):
            yield from _whole(f"{published}.Conv{'2d' if part.fir else ''}_0", f"{ours}.conv")
        elif isinstance(part, WaveletPyramidDown):
            yield from _whole(published, f"{ours}.conv")
        else:
            yield from _whole(published, ours)
    for i in range(len(module.mapping.layers)):
        yield from _whole(f"z_transform.{1 + 2 * i}", f"mapping.layers.{i}")


def _published_order(module: Generator) -> Iterator[nn.Module]:
    """The generator's layers as the published module list has them."""
    yield from (module.time_embedding.linear0, module.time_embedding.linear1, module.conv_in)
    for level in module.down_levels():
        for i, block in enumerate(level.blocks):
            yield block
            if level.attentions:
                yield level.attentions[i]
        yield from (part for part in (level.resample, level.pyramid) if part is not None)
    yield from (module.middle0, module.middle_attention, module.middle1)
    for up in module.up_levels():
        yield from up.blocks
        yield from (part for part in (up.attention, up.resample) if part is not None)
    yield from (module.norm_out, module.conv_out)


def _attention_entries(published: str, ours: str, channels: int) -> Iterator[Entry]:
    yield from _whole(f"{published}.GroupNorm_0", f"{ours}.norm")
    for i in range(3):
        rows = (i * channels, (i + 1) * channels)
        yield Entry(f"{published}.NIN_{i}.W", f"{ours}.qkv.weight", rows, transposed=True)
        yield Entry(f"{published}.NIN_{i}.b", f"{ours}.qkv.bias", rows)
    yield Entry(f"{published}.NIN_3.W", f"{ours}.out.weight", transposed=True)
    yield Entry(f"{published}.NIN_3.b", f"{ours}.out.bias")


def _discriminator_entries(module: Discriminator) -> Iterator[Entry]:
    yield from _whole("t_embed.main.0", "time_embedding.linear0")
    yield from _whole("t_embed.main.2", "time_embedding.linear1")
    yield from _whole("start_conv", "stem")
    start = 0
    for i, size in enumerate(module.time_bank.sizes):
        rows, published, ours = (start, start + size), f"conv{i + 1}", f"blocks.{i}"
        start += size
        yield Entry(f"{published}.conv1.0.weight", f"{ours}.conv0.weight")
        yield Entry(f"{published}.conv1.0.bias", "time_bank.conv_bias", rows)
        yield from _whole(f"{published}.conv2.0", f"{ours}.conv1")
        yield Entry(f"{published}.dense_t1.weight", "time_bank.weight", rows)
        yield Entry(f"{published}.dense_t1.bias", "time_bank.bias", rows)
        yield Entry(f"{published}.skip.0.weight", f"{ours}.shortcut.weight")
    yield from _whole("final_conv", "final")
    yield from _whole("end_linear", "out")


def _whole(published: str, ours: str) -> Iterator[Entry]:
    """Weight and bias of a layer that both have alike."""
    for kind in ("weight", "bias"):
        yield Entry(f"{published}.{kind}", f"{ours}.{kind}")


@torch.no_grad()
def fill(module: Generator | Discriminator, state: Mapping[str, Tensor], network: str) -> None:
    """Copies published weights into the module.

    Raises:
        ValueError: a name is missing, not expected, or its shape does not fit; all are listed.
    """
    own = module.state_dict()
    views = {entry.published: entry.of(own) for entry in entries_of(module)}
    check_fits(network, state, views)
    for name, view in views.items():
        view.copy_(state[name])


def published_state_dict(module: Generator | Discriminator) -> dict[str, Tensor]:
    """The module's weights under the published names (copies)."""
    if module.config.classes:
        raise ValueError(f"to_published: classes must be 0, got {module.config.classes}")
    own = module.state_dict()
    return {entry.published: entry.of(own).clone().contiguous() for entry in entries_of(module)}
