"""The same calls as one CUDA graph: a small batch leaves a GPU waiting for Python, which launches
some hundred kernels a step; a graph launches them all at once."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Graph(NamedTuple):
    """A captured batch: `replay()` turns `inputs` (N,) into `images`, both its own memory."""

    inputs: tuple[Tensor, ...]
    replay: Callable[[], None]
    images: Tensor


def bucket(count: int, largest: int) -> int:
    """The batch of the graph that serves `count` samples, at most an eighth of it unused.

    All sizes up to 16, then eight from each power of two to the next, up to `largest`.
    """
    step = 1 << max(0, count.bit_length() - 4)
    return min(largest, -(-count // step) * step)


def capturable(device: torch.device) -> bool:
    """Whether calls on `device` can be captured; not while someone else captures already."""
    return device.type == "cuda" and not torch.cuda.is_current_stream_capturing()


@contextmanager
def captured(
    graph: torch.cuda.CUDAGraph, pool: Any, stream: torch.cuda.Stream | None, whose: str
) -> Iterator[None]:
    """What runs inside becomes `graph`; other threads, as those that load data, go on calling CUDA.

    Raises:
        RuntimeError: it cannot be captured; the message begins with `whose`.
    """
    gc.collect()  # graphs that are garbage would be destroyed in the middle of it
    try:
        with torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local"):
            yield
    except RuntimeError as error:
        if torch.cuda.is_initialized():  # else PyTorch would refuse random numbers from now on
            generator = torch.cuda.default_generators[torch.cuda.current_device()]
            generator.graphsafe_set_state(generator.clone_state())
        raise RuntimeError(f"{whose}, got: {error}") from error


class CudaGraphs:
    """CUDA graphs on one device, in memory that they share: so they run one after the other."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool = torch.cuda.graph_pool_handle()
        self.stream = torch.cuda.Stream(device)  # one pool, one stream of capture
        self.done = torch.cuda.Event()

    def capture(self, draw: Callable[..., Tensor], size: int, count: int = 1) -> Graph:
        """`draw(*inputs)` for `count` inputs of `size` int64, seeds and labels, as a graph.

        Raises:
            RuntimeError: it does what cannot be captured.
        """
        zeros = [torch.zeros(size, dtype=torch.int64, device=self.device) for _ in range(count)]
        inputs = tuple(zeros)
        graph = torch.cuda.CUDAGraph()
        enabled, dtype = autocast_state(self.device)
        with (
            torch.cuda.device(self.device),
            # Autocast's cache of weights would not outlive the block that the caller is in.
            torch.autocast(self.device.type, dtype, enabled, cache_enabled=False),
        ):
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                draw(*inputs)  # compiles, loads and caches what cannot be captured
                whose = (
                    "Sampler: generator and decoder must neither read values back nor wait for the "
                    "GPU, so that a graph can be captured"
                )
                with captured(graph, self.pool, self.stream, whose):
                    images = draw(*inputs)
            torch.cuda.current_stream().wait_stream(self.stream)
        return Graph(inputs, graph.replay, images)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """For a replay, on the current stream: it waits for those on other streams."""
        with torch.cuda.device(self.device):
            self.done.wait()
            yield
            self.done.record()

    def finish(self) -> None:
        """Waits for all replays, so that the graphs and their memory may go."""
        torch.cuda.synchronize(self.device)


def autocast_state(device: torch.device) -> tuple[bool, torch.dtype]:
    """(whether autocast is on, its dtype)."""
    return torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)
