"""On a GPU no pass over whole maps is left that another kernel could make: counted on fakes."""

from collections import Counter

import pytest

from benchmarks._passes import passes
from lddgan_kernels import _extension
from lddgan_kernels.trainer import config_file, networks

pytestmark = pytest.mark.skipif(not _extension.is_loaded(), reason="the extension is not compiled")

NCSNPP = ("cifar10", "celebahq256", "lsun-church256", "ddgan-celebahq256")
# Matrix products, and our kernels, which make one pass each for what they are named after.
MADE_ONCE = ("aten.convolution", "attention", "lddgan.")


def found(build, shapes):
    """(names of PyTorch's passes over maps or tokens, output channels of biased convolutions,
    counts of filters)."""
    calls = passes(build, shapes, batch=2)
    assert {"lddgan.ada_group_norm", "attention"} <= {call.name for call in calls}
    assert not any(call.copied for call in calls)
    # Residual sums leave the moments for what resamples.
    assert not any(call.name == "lddgan.group_moments" for call in calls)
    names = (call.name for call in calls if len(call.output) > 2)
    left = Counter(name for name in names if not name.startswith(MADE_ONCE))
    return left, [call.output[1] for call in calls if call.biased], filters_of(calls)


def filters_of(calls):
    """How often FIR filters run: behind a norm, for both branches; and the input pyramid's."""
    names = Counter(call.name for call in calls)
    return {name: names[name] for name in ("lddgan.norm_resample", "lddgan.upfirdn2d")}


def generator(preset):
    config = config_file.load(preset)
    latent = networks.latent_shape(config)
    shapes = [(1, *latent), (1,), (1, config.generator.z_dim)]
    return *found(lambda: networks.build_generator(config), shapes), config, latent[0]


@pytest.mark.parametrize("preset", NCSNPP)
def test_generator(preset):
    left, biased, filters, config, channels = generator(preset)
    assert left == {"aten.tanh": 1}  # the last, of few channels
    steps = len(config.generator.channel_multipliers) - 1
    assert filters == {"lddgan.norm_resample": 2 * steps, "lddgan.upfirdn2d": steps}
    # The first, whose output is read by a norm, two sums and a skip; and the last, of few channels.
    assert biased == [config.generator.base_channels, channels * config.generator.patch_size**2]


@pytest.mark.parametrize("preset", ["cifar10", "celebahq256", "lsun-church256"])
def test_decoder(preset):
    config = config_file.load(preset)
    latent = networks.latent_shape(config)
    left, biased, _ = found(lambda: networks.build_autoencoder(config).decoder, [(1, *latent)])
    assert left == ({"aten.tanh": 1} if config.autoencoder.tanh_out else {})
    assert biased == [3]  # the last


def test_wavelet_generator():
    left, biased, _, config, _ = generator("wddgan-stl10")
    steps = len(config.generator.channel_multipliers) - 1
    # The inverse transform reads one tensor of all bands: two a step up, two in the middle. A norm
    # reads whole tensors: the low band is copied. The mean of 2x2 is a step's shortcut.
    expected = {"aten.cat": 2 * steps + 2, "aten.clone": steps + 2, "aten.avg_pool2d": steps}
    assert left == {**expected, "aten.tanh": 1}
    # As above, and one a step whose output two transforms read.
    assert len(biased) == 2 + steps


def test_transformer():
    left, biased, _, config, channels = generator("cifar10-vit-tiny")
    depth, skips = config.vit.depth, config.vit.depth // 2
    # Residual sums (biases are in the matrix products) and the positions; the step's token before
    # the others; the prediction's bias, whose tokens are a slice; activations; images to patches
    # and back.
    sums = 2 * depth + skips + 2
    left.pop("aten._unsafe_view")  # of what is new
    expected = {"aten.add": sums, "aten.cat": 1, "aten.gelu": depth, "aten.clone": 4}
    assert left == {**expected, "aten.tanh": 1}
    assert biased == [channels]
