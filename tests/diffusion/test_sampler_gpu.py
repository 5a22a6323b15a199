"""Sampling as one graph on a GPU; and, on fakes of GPU tensors, that no call reads a value back."""

import importlib

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from lddgan_kernels import use_backend
from lddgan_kernels.diffusion import Schedule, cuda_graph, sample
from lddgan_kernels.models import Generator, GeneratorConfig, ViTGenerator, WaveletGenerator
from lddgan_kernels.ops import _fir
from tests.diffusion.test_sampler import (
    CHANGES,
    SHAPE,
    VIT,
    Z_DIM,
    build,
    check,
    eager,
    networks,
    seeds_of,
    tensors,
)

CONVOLUTIONAL = GeneratorConfig(
    *SHAPE[:2], base_channels=32, channel_multipliers=(1, 2), num_blocks=1, z_dim=Z_DIM,
    mapping_layers=1, mapping_width=16, attention_resolutions=(8,),
)  # fmt: skip
KINDS = [(Generator, CONVOLUTIONAL), (WaveletGenerator, CONVOLUTIONAL), (ViTGenerator, VIT)]
CAPTURE = cuda_graph.CudaGraphs.capture
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.fixture
def gpu(monkeypatch):
    """Where convolutions are float32's, so that batch sizes agree; it counts the captures there."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    counted = []

    def capture(self, draw, size, count):
        counted.append(size)
        return CAPTURE(self, draw, size, count)

    monkeypatch.setattr(cuda_graph.CudaGraphs, "capture", capture)
    return counted


def build_on_gpu(kind=Generator, config=CONVOLUTIONAL, **options):
    # Of quantised latents, rounding may choose another code.
    return build(kind, config, "cuda", codebook_size=0, **options)


@needs_gpu
@pytest.mark.parametrize(("kind", "config"), KINDS)
@pytest.mark.parametrize("count", [1, 3, 16, 17, 100])
def test_replays_give_the_images_of_the_plain_path_on_a_gpu(gpu, kind, config, count):
    check(*build_on_gpu(kind, config), seeds_of(count))
    assert gpu == [cuda_graph.bucket(count, 128)]


@needs_gpu
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_after_capture_is_seen_on_a_gpu(gpu, change):
    parts = build_on_gpu(ViTGenerator, VIT)
    check(*parts, seeds_of(3))
    change(*parts[:2])
    check(*parts, seeds_of(3))
    assert gpu == [3, 3]


@needs_gpu
def test_moved_modules_are_seen_on_a_gpu(gpu):
    generator, decoder, sampler = parts = build_on_gpu()
    check(*parts, seeds_of(3))
    on_gpu = sampler(seeds_of(3))
    generator.cpu(), decoder.cpu()
    check(*parts, seeds_of(3))
    torch.testing.assert_close(sampler(seeds_of(3)), on_gpu.cpu(), rtol=1e-3, atol=1e-4)
    generator.cuda()
    with pytest.raises(ValueError, match="decoder must be on cuda:0 like generator, got cpu"):
        sampler(seeds_of(3))
    decoder.cuda()
    check(*parts, seeds_of(3))
    assert gpu == [3, 3]


@needs_gpu
def test_graphs_share_memory_on_a_gpu_without_mixing_up(gpu):
    generator, decoder, sampler = build_on_gpu()
    counts = (1, 16, 3, 100)
    for _ in range(2):
        for count in counts:
            sampler(seeds_of(count))
    streams = [torch.cuda.Stream() for _ in counts]
    images = {}
    torch.cuda.synchronize()
    for count, stream in zip(counts * 3, streams * 3, strict=True):
        with torch.cuda.stream(stream):
            images[count] = sampler(seeds_of(count, first=count))
    torch.cuda.synchronize()
    assert sorted(gpu) == [1, 3, 16, 104]
    for count in counts:
        expected = eager(generator, decoder, seeds_of(count, first=count))
        torch.testing.assert_close(images[count], expected, rtol=1e-3, atol=1e-4)


@needs_gpu
def test_a_replay_on_a_gpu_does_not_wait_for_it(gpu):
    generator, decoder, sampler = build_on_gpu()
    seeds = seeds_of(16).cuda()
    for _ in range(3):
        sampler(seeds)
    torch.cuda.set_sync_debug_mode("error")
    try:
        images = sampler(seeds)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(images, eager(generator, decoder, seeds), rtol=1e-3, atol=1e-4)


@needs_gpu
@pytest.mark.parametrize("trained", [False, True])
def test_autocast_on_a_gpu(gpu, trained):
    generator, decoder, sampler = build_on_gpu()
    generator.requires_grad_(trained)  # then autocast would keep what it converted
    with torch.autocast("cuda", torch.bfloat16):
        expected = eager(generator, decoder, seeds_of(3))
        for _ in range(3):
            images = sampler(seeds_of(3))
    error = (images.float() - expected.float()).abs().max() / expected.float().abs().max()
    assert error <= 5e-2
    check(generator, decoder, sampler, seeds_of(3))
    assert gpu == [3, 3]


@needs_gpu
def test_what_cannot_be_captured_on_a_gpu_is_said(gpu):
    class Reads(Generator):
        def forward(self, x, t, z):
            return super().forward(x, t, z) * float(x.sum() != 0)

    sampler = build_on_gpu(Reads)[2]
    sampler(seeds_of(2))
    with pytest.raises(RuntimeError, match="must neither read values back"):
        sampler(seeds_of(2))


class NoReadBack(TorchDispatchMode):
    """Fails where the host waits for the device: values read, tensors copied between the two."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if given := tensors((args, kwargs)):
            numbers = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default)
            assert func not in (*numbers, torch.ops.aten.nonzero.default), func
            # Numbers that Python wrapped into tensors may come from the CPU: they are no copies.
            devices = {t.device.type for t in (*given, *tensors(result)) if t.ndim}
            assert devices <= {"cuda"}, f"{func} on {devices}"
        return result


@pytest.fixture
def no_launches(monkeypatch):
    """Triton's kernels are not run, and the device is as large as an H200."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    jit = importlib.import_module("triton.runtime.jit")
    for kind, method in ((jit.JITFunction, "run"), (interpreter.GridExecutor, "__call__")):
        monkeypatch.setattr(kind, method, lambda *_args, **_options: None)
    norm = importlib.import_module("lddgan_kernels.ops.ada_group_norm")
    size = norm.device_size(torch.device("cpu"))
    monkeypatch.setattr(norm, "device_size", lambda device: size)
    # For good they would keep the fakes.
    monkeypatch.setattr(_fir, "_TAPS", dict(_fir._TAPS))


@pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="needs a CUDA build of PyTorch")
@pytest.mark.parametrize("backend", [pytest.param(None, marks=needs_gpu), "reference"])
@pytest.mark.parametrize(("kind", "config"), KINDS)
def test_no_value_is_read_back(kind, config, backend, no_launches, monkeypatch):
    with torch.device("meta"):
        generator, decoder = networks(kind, config)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    for part in (*generator.modules(), *decoder.modules()):
        for owner in (part._parameters, part._buffers):
            for name, tensor in owner.items():
                if tensor is not None:
                    owner[name] = FakeTensor(mode, tensor.detach(), torch.device("cuda:0"))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    with mode, use_backend(backend), torch.no_grad():
        schedule = Schedule(2, "cuda:0")
        seeds = torch.arange(3, device="cuda:0")

        def draw():
            x = sample(generator, schedule, SHAPE, seeds, z_dim=Z_DIM)
            return decoder.decode(x)

        draw()  # as before a capture
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        with NoReadBack():
            images = draw()
        assert images.shape == (3, 3, 16, 16)
        assert images.is_cuda
        with pytest.raises(AssertionError, match="on {'cpu'}"), NoReadBack():
            torch.arange(3).to("cuda:0")
