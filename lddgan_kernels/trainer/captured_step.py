"""A training step replayed as a CUDA graph: launched from Python kernel by kernel, the step of a
small network leaves the GPU idle for most of its time."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim import Optimizer

from lddgan_kernels.diffusion.cuda_graph import captured
from lddgan_kernels.trainer import distributed
from lddgan_kernels.trainer.config import Config
from lddgan_kernels.trainer.meter import Metrics
from lddgan_kernels.trainer.optimizers import capturing


class _Graph(NamedTuple):
    inputs: list[Tensor]
    replay: Callable[[], None]
    names: tuple[str, ...]
    values: Tensor


class CapturedStep:
    """step(kind, tensors): what `compute(kind, tensors)` does, from its second call on as a graph.

    Only on one GPU, and unless the configuration says no; elsewhere each call is `compute`'s.

    Args:
        compute: forward, backward and the optimizers' steps, and metrics, 0-dim each. All that
            changes from call to call is in its tensors; whatever else it reads is as it was when
            it was captured, one graph for each kind and shape. It may not read values back.
        optimizers: those that it steps, whose gradients are None before and after it.
        config, device: whether and where it is captured.
    """

    def __init__(
        self,
        compute: Callable[[bool, Sequence[Tensor]], Metrics],
        optimizers: Iterable[Optimizer],
        config: Config,
        device: torch.device,
    ) -> None:
        alone = distributed.world_size() == 1
        self._captures = config.cuda_graphs and device.type == "cuda" and alone
        self._compute = compute
        self._optimizers = list(optimizers)
        self._graphs: dict[object, _Graph | None] = {}
        self._pool: Any = None  # shared by the graphs, as they run one at a time

    def forget(self) -> None:
        """Drops the graphs, as what they wrote to has been replaced."""
        self._graphs.clear()

    def __call__(self, kind: bool, tensors: Sequence[Tensor]) -> Metrics:
        if not self._captures:
            return self._compute(kind, tensors)
        key = kind, *((t.shape, t.dtype, t.stride()) for t in tensors)
        if key not in self._graphs:  # this call loads and tunes what cannot be captured
            self._graphs[key] = None
            return self._compute(kind, tensors)
        graph = self._graphs[key]
        if graph is None:
            graph = self._graphs[key] = self._capture(kind, tensors)
        for static, tensor in zip(graph.inputs, tensors, strict=True):
            static.copy_(tensor)
        graph.replay()
        increment_version(self._weights())  # a replay writes behind the counters' back
        return dict(zip(graph.names, graph.values.clone().unbind(), strict=True))

    def _weights(self) -> list[Tensor]:
        return [w for o in self._optimizers for group in o.param_groups for w in group["params"]]

    def _capture(self, kind: bool, tensors: Sequence[Tensor]) -> _Graph:
        inputs = [tensor.clone() for tensor in tensors]
        increment_version(self._weights())  # so that nothing kept of them is taken for good
        graph = torch.cuda.CUDAGraph()
        whose = (
            "train: a step that becomes a CUDA graph must neither read values back nor wait for "
            "the GPU (cuda_graphs = false runs it call by call)"
        )
        with capturing(self._optimizers), captured(graph, self._pool, None, whose):
            metrics = self._compute(kind, inputs)
            values = torch.stack([value.float() for value in metrics.values()])
        self._pool = graph.pool()
        return _Graph(inputs, graph.replay, tuple(metrics), values)
