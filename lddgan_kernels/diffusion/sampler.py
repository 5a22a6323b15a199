"""Seeds to images: the T generator calls, their noise and the decoder, replayed as one: on a GPU a
CUDA graph, on a CPU a recording."""

import itertools
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from lddgan_kernels._backend import default_backend
from lddgan_kernels._checks import check_labels, check_tensor, fail
from lddgan_kernels.diffusion.cuda_graph import (
    CudaGraphs,
    Graph,
    autocast_state,
    bucket,
    capturable,
)
from lddgan_kernels.diffusion.few_step import sample
from lddgan_kernels.diffusion.guidance import NO_LABEL
from lddgan_kernels.diffusion.recording import Recordings
from lddgan_kernels.diffusion.schedule import Schedule
from lddgan_kernels.nn import ModuleState
from lddgan_kernels.ops._steps import check_seeds


class Sampler:
    """sampler(seeds): the images of seeds, as `sample` and the decoder make them.

    The first call of a batch size runs as it is, as it may be the only one; the second captures all
    of it, on CUDA as a graph, on a CPU as a recording (see `recorded`), which the later ones
    replay. On CUDA sizes are rounded up to `bucket`s of one graph each; what a graph computes
    beyond the seeds is dropped. Changes of the modules that `nn.ModuleState` sees discard what was
    captured, so weights may be trained or loaded, and modules moved or converted, between calls.
    Calls are for one thread at a time.

    Args:
        generator: as for `sample`, in `eval()`; must not read values back, which a
            graph forbids and a recording cannot hold: then, on a CPU, calls run as they are.
        schedule: T steps; its tables follow the generator to its device.
        shape: (C, H, W) of what the generator makes.
        z_dim: width of its latent z.
        decoder: a module whose `decode(x)` turns that into images: an `Autoencoder`, for latents
            that are not scaled. None: x is the image.
        guidance: strength of guidance where labels are given, as for `sample`.
        dtype: of x and z: float32, bfloat16 or float16; None: that of the generator's parameters.
        memory_format: of x as the generator gets it.
        max_batch: larger batches are split.
    """

    def __init__(
        self,
        generator: nn.Module,
        schedule: Schedule,
        shape: Sequence[int],
        *,
        z_dim: int,
        decoder: nn.Module | None = None,
        guidance: float = 0.0,
        dtype: torch.dtype | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
        max_batch: int = 128,
    ) -> None:
        if max_batch < 1:
            raise fail("Sampler", "max_batch", "positive", max_batch)
        self._generator = generator
        self._decoder = decoder
        self._schedule = schedule
        self._shape = tuple(shape)
        self._z_dim = z_dim
        self._guidance = guidance
        self._dtype = dtype
        self._memory_format = memory_format
        self._max_batch = max_batch
        self._device: torch.device | None = None
        self._state: ModuleState | None = None
        self._graphs: CudaGraphs | None = None
        self._recordings = Recordings("Sampler")
        self._known: dict[tuple[object, ...], Graph | None] = {}

    def __call__(self, seeds: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images (N, C, H, W), on the generator's device, of seeds (N,) int64 from any device.

        The tensor is the caller's: no later call writes to it. Labels (N,) int64, from any device
        too, are the classes to draw.

        Raises:
            ValueError: seeds or labels do not fit, or generator and decoder are on two devices.
            RuntimeError: generator or decoder cannot be captured as a graph.
        """
        check_tensor("Sampler", "seeds", seeds)
        check_seeds("Sampler", seeds, seeds.numel(), seeds.device)
        given = (seeds,) if labels is None else (seeds, self._check_labels(labels, len(seeds)))
        device = self._place()
        with torch.inference_mode(False), torch.no_grad():  # the former allows gradients again
            parts = zip(*(x.split(self._max_batch) for x in given), strict=True)
            images = [self._part(part, device) for part in parts]
            return images[0] if len(images) == 1 else torch.cat(images)

    def _check_labels(self, labels: Tensor, count: int) -> Tensor:
        """The labels; their values are looked at where that needs no wait for a GPU."""
        classes = getattr(getattr(self._generator, "config", None), "classes", None)
        check_labels("Sampler", labels, count, 1 if classes is None else classes)
        if classes is not None and labels.is_cpu and labels.numel():
            wrong = labels[(labels < NO_LABEL) | (labels >= classes)]
            if len(wrong):
                raise fail("Sampler", "labels", f"in 0..{classes - 1}", int(wrong[0]))
        return labels

    def _place(self) -> torch.device:
        """The generator's device, onto which the schedule follows."""
        device = _device_of(self._generator) or self._schedule.device
        decoder = None if self._decoder is None else _device_of(self._decoder)
        if decoder not in (None, device):
            raise fail("Sampler", "decoder", f"on {device} like generator", decoder)
        self._schedule = self._schedule.to(device)
        return device

    def _part(self, given: tuple[Tensor, ...], device: torch.device) -> Tensor:
        """The images of at most `max_batch` seeds: replayed, or call by call."""
        count = len(given[0])
        if count == 0 or not capturable(device):
            return self._recordings(self._draw, self._modules(), *(x.to(device) for x in given))
        if self._state is None or device != self._device or not self._state.holds():
            self._forget(device)
        assert self._state is not None
        assert self._graphs is not None
        if not self._state.recordable:
            return self._draw(*(x.to(device) for x in given))
        size = bucket(count, self._max_batch)
        key = size, len(given), self._resolved_dtype(), default_backend(), *autocast_state(device)
        if key not in self._known:  # captured when it comes again
            self._known[key] = None
            return self._draw(*(x.to(device) for x in given))
        graph = self._known[key]
        if graph is None:
            graph = self._known[key] = self._graphs.capture(self._draw, size, len(given))
        with self._graphs.turn():
            for memory, x in zip(graph.inputs, given, strict=True):
                memory[:count].copy_(x)
            graph.replay()
            return graph.images[:count].clone()

    def _forget(self, device: torch.device) -> None:
        """Drops the graphs, for modules as they are now."""
        if self._graphs is not None:
            self._graphs.finish()
        self._known.clear()
        state, graphs = ModuleState(*self._modules()), CudaGraphs(device)
        self._device, self._state, self._graphs = device, state, graphs

    def _modules(self) -> list[nn.Module]:
        return [part for part in (self._generator, self._decoder) if part is not None]

    def _resolved_dtype(self) -> torch.dtype:
        """Of x and z."""
        if self._dtype is not None:
            return self._dtype
        parameter = next(self._generator.parameters(), None)
        return torch.float32 if parameter is None else parameter.dtype

    def _draw(self, seeds: Tensor, labels: Tensor | None = None) -> Tensor:
        """The images, call by call; `seeds` and `labels` are on the device."""
        x = sample(
            self._generator,
            self._schedule,
            self._shape,
            seeds,
            z_dim=self._z_dim,
            labels=labels,
            guidance=self._guidance,
            dtype=self._resolved_dtype(),
            memory_format=self._memory_format,
        )
        return x if self._decoder is None else cast(Any, self._decoder).decode(x)


def _device_of(module: nn.Module) -> torch.device | None:
    """Where a module's first tensor is; None: it has none."""
    tensors = itertools.chain(module.parameters(), module.buffers())
    return next((tensor.device for tensor in tensors), None)
