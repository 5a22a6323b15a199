"""The whole sampler as one graph; without a GPU on a stand-in for CUDA's graphs."""

import copy
import importlib
import inspect
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lddgan_kernels import use_backend
from lddgan_kernels.diffusion import Sampler, Schedule, cuda_graph, sample, sampler
from lddgan_kernels.models import Autoencoder, AutoencoderConfig, ViTConfig, ViTGenerator

SHAPE, Z_DIM, STEPS = (3, 8, 8), 5, 2
REAL_GRAPH = torch.cuda.graph


def tensors(values):
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def storage(tensor):
    return None if tensor.is_mkldnn else tensor.untyped_storage().data_ptr()


class FakeGraph(TorchDispatchMode):
    """What runs inside is run again by `replay`, on the same memory, as a CUDA graph does it."""

    captured = 0

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        numbers = any(isinstance(leaf, int | float) for leaf in tree_leaves(result))
        if numbers and tensors((args, kwargs)):
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def replay(self):
        for func, args, kwargs, results in self.calls:
            given = {storage(tensor) for tensor in tensors((args, kwargs))}
            for old, new in zip(tensors(results), tensors(func(*args, **kwargs)), strict=True):
                if storage(old) not in given:  # neither a view nor in place
                    old.copy_(new)


class FakeStream:
    def __init__(self, device=None):
        self.waited = []

    def wait_stream(self, other):
        self.waited.append(other)


class FakeEvent:
    def wait(self):
        pass

    def record(self):
        pass


@contextmanager
def fake_capture(*args, **kwargs):
    given = inspect.signature(REAL_GRAPH).bind(*args, **kwargs).arguments
    assert isinstance(given["stream"], FakeStream)
    with given["cuda_graph"]:
        yield
    FakeGraph.captured += 1


@pytest.fixture
def graphs(monkeypatch):
    """Graphs on the CPU, by stand-ins for torch.cuda; gives the class that counts captures."""
    monkeypatch.setattr(sampler, "capturable", lambda device: True)
    # On the CPU alone the reference looks at the steps' values.
    posterior = importlib.import_module("lddgan_kernels.ops.posterior_sample")
    monkeypatch.setattr(posterior, "check_t_values", lambda *_: None)
    FakeGraph.captured = 0
    for name, value in {
        "CUDAGraph": FakeGraph,
        "Event": FakeEvent,
        "Stream": FakeStream,
        "current_stream": FakeStream,
        "device": lambda device: nullcontext(),
        "graph": fake_capture,
        "graph_pool_handle": object,
        "stream": lambda stream: nullcontext(),
        "synchronize": lambda device: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return FakeGraph


class Counted(ViTGenerator):
    """Counts the calls that Python makes."""

    calls = 0

    def _predict(self, x, *conditions):
        self.calls += 1
        return super()._predict(x, *conditions)


VIT = ViTConfig(
    *SHAPE[:2], width=16, depth=3, num_heads=2, mlp_width=24, z_dim=Z_DIM, mapping_layers=1
)


def networks(kind, config, codebook_size=32):
    """Generator and decoder."""
    torch.manual_seed(0)
    # Upsampling and, on the CPU, all convolutions keep tensors derived from their weights.
    structure = AutoencoderConfig(
        resolution=16, latent_channels=3, base_channels=32, codebook_size=codebook_size
    )
    modules = kind(config), Autoencoder(structure)
    return [module.eval().requires_grad_(False) for module in modules]


def build(kind=Counted, config=VIT, device="cpu", codebook_size=32, **options):
    """Generator, decoder, and the sampler of both."""
    generator, decoder = networks(kind, config, codebook_size)
    generator.to(device, memory_format=torch.channels_last)
    decoder.to(device, memory_format=torch.channels_last)
    options = {"decoder": decoder, "memory_format": torch.channels_last} | options
    sampler = Sampler(generator, Schedule(STEPS), SHAPE, z_dim=Z_DIM, **options)
    return generator, decoder, sampler


@torch.no_grad()
def eager(generator, decoder, seeds):
    """What the sampler must give."""
    weight = next(generator.parameters())
    seeds, schedule = seeds.to(weight.device), Schedule(STEPS, weight.device)
    x = sample(
        generator, schedule, SHAPE, seeds, z_dim=Z_DIM, dtype=weight.dtype,
        memory_format=torch.channels_last,
    )  # fmt: skip
    return decoder.decode(x)


def check(generator, decoder, sampler, seeds):
    """Three calls, of which the last one replays, against the plain path."""
    expected = eager(generator, decoder, seeds)
    for _ in range(3):
        images = sampler(seeds)
        assert images.dtype == expected.dtype
        assert images.stride() == expected.stride()
        # A bucket is another batch size, whose sums may be split otherwise.
        error = (images.float() - expected.float()).abs().max() / expected.float().abs().max()
        rounding = 1e-3 if images.is_cuda else 2e-5
        assert error <= (rounding if images.dtype == torch.float32 else 5e-2)


def seeds_of(count, first=0):
    return torch.arange(first, first + count) * 7 - 3


def test_buckets():
    sizes = [cuda_graph.bucket(n, 128) for n in range(1, 129)]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 40
    for n, size in enumerate(sizes, 1):
        assert n <= size <= n + n // 8
    assert [cuda_graph.bucket(n, 128) for n in (1, 16, 17, 64, 100)] == [1, 16, 18, 64, 104]
    assert cuda_graph.bucket(97, 100) == 100


def test_off_cuda_it_is_the_plain_path():
    generator, decoder, sampler = build()
    assert torch.equal(sampler(seeds_of(3)), eager(generator, decoder, seeds_of(3)))
    assert sampler(seeds_of(0)).shape == (0, 3, 16, 16)
    assert sampler._graphs is None
    alone = build(decoder=None)[2]
    assert alone(seeds_of(2)).shape == (2, *SHAPE)


@pytest.mark.parametrize("count", [1, 3, 17])
def test_replays_give_the_images_of_the_plain_path(graphs, count):
    parts = build()
    check(*parts, seeds_of(count))
    generator, decoder, sampler = parts
    assert graphs.captured == 1
    calls = generator.calls
    others = seeds_of(count, first=1000)
    images = sampler(others)
    assert generator.calls == calls  # no Python of the model ran
    torch.testing.assert_close(images, eager(generator, decoder, others), rtol=1e-4, atol=1e-5)


def test_results_are_the_callers_own(graphs):
    sampler = build()[2]
    for _ in range(2):
        sampler(seeds_of(4))
    first = sampler(seeds_of(4))
    before = first.clone()
    sampler(seeds_of(4, first=50))
    assert torch.equal(first, before)
    first.zero_()
    assert torch.equal(sampler(seeds_of(4)), before)


def test_sizes_of_one_bucket_share_a_graph_and_large_batches_are_split(graphs):
    generator, decoder, sampler = build(max_batch=24)
    for count in (17, 18, 17):
        sampler(seeds_of(count))
    assert graphs.captured == 1
    images = sampler(seeds_of(24 * 3 + 18))
    assert graphs.captured == 2  # 24, of which there are three, and 18 again
    expected = eager(generator, decoder, seeds_of(24 * 3 + 18))
    torch.testing.assert_close(images, expected, rtol=1e-4, atol=1e-5)
    assert sampler(seeds_of(0)).shape == (0, 3, 16, 16)


def in_place(generator, decoder):
    with torch.no_grad():
        generator.conv_out.bias.add_(0.1)


def through_a_derived_tensor(generator, decoder):
    with torch.no_grad():
        decoder.decoder.levels[0].resample.conv.weight.mul_(2)


def another_parameter(generator, decoder):
    generator.predict.weight = nn.Parameter(generator.predict.weight * 2, requires_grad=False)


def another_submodule(generator, decoder):
    generator.blocks[1] = copy.deepcopy(generator.blocks[0])


def loaded(generator, decoder):
    generator.load_state_dict({k: v * 1.5 for k, v in generator.state_dict().items()})


def converted(generator, decoder):
    generator.bfloat16()
    decoder.bfloat16()


def buffer(generator, decoder):
    decoder.register_buffer("shift", torch.ones(()))
    decoder.decode = lambda z: Autoencoder.decode(decoder, z) + decoder.shift


CHANGES = [
    in_place, through_a_derived_tensor, another_parameter, another_submodule, loaded, converted,
    buffer,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_after_capture_is_seen(graphs, change):
    parts = build()
    check(*parts, seeds_of(3))
    change(*parts[:2])
    check(*parts, seeds_of(3))
    assert graphs.captured == 2


def test_modes_hooks_backends_and_autocast_are_seen(graphs):
    generator, decoder, sampler = build()
    check(generator, decoder, sampler, seeds_of(3))
    seen = []
    handle = generator.predict.register_forward_hook(lambda *_: seen.append(1))
    for _ in range(3):
        sampler(seeds_of(3))
    assert len(seen) == 6  # each step of each call
    handle.remove()
    with use_backend("reference"):
        check(generator, decoder, sampler, seeds_of(3))
    with torch.autocast("cpu", torch.bfloat16):
        check(generator, decoder, sampler, seeds_of(3))
    assert graphs.captured == 3  # one before the hook, none with it, two with it gone
    check(generator, decoder, sampler, seeds_of(3))
    assert graphs.captured == 4
    decoder.decoder.middle.train()
    check(generator, decoder, sampler, seeds_of(3))
    assert graphs.captured == 5


def test_trained_weights_are_never_captured(graphs):
    """A change between any two calls: graphs would cost more than they give."""
    generator, decoder, sampler = build()
    for _ in range(3):
        in_place(generator, decoder)
        assert torch.equal(sampler(seeds_of(3)), eager(generator, decoder, seeds_of(3)))
    assert graphs.captured == 0


def test_inference_mode_neither_leaks_in_nor_out(graphs):
    generator, decoder, sampler = build()
    with torch.inference_mode():
        check(generator, decoder, sampler, seeds_of(3))
    check(generator, decoder, sampler, seeds_of(3))
    assert graphs.captured == 1
    assert not sampler(seeds_of(3)).is_inference()


def test_what_cannot_be_captured_is_said(graphs):
    class Reads(Counted):
        def forward(self, x, t, z):
            return super().forward(x, t, z) * float(x.sum() != 0)

    sampler = build(Reads)[2]
    sampler(seeds_of(2))
    with pytest.raises(RuntimeError, match="must neither read values back"):
        sampler(seeds_of(2))


def test_errors():
    _, decoder, sampler = build()
    with pytest.raises(ValueError, match="seeds must be int64, got torch.float32"):
        sampler(torch.zeros(2))
    with pytest.raises(ValueError, match=r"seeds must be of shape \(6,\), got \(2, 3\)"):
        sampler(torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(TypeError, match="seeds must be a torch.Tensor, got list"):
        sampler([1, 2])
    with pytest.raises(ValueError, match="max_batch must be positive, got 0"):
        build(max_batch=0)
    decoder.to("meta")
    with pytest.raises(ValueError, match="decoder must be on cpu like generator, got meta"):
        sampler(seeds_of(2))
