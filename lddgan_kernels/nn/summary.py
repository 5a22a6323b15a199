"""What a network costs: parameters, multiplications and activation memory, block by block.

Nothing is computed: tensors are fakes, which have shapes alone, so the largest network takes
seconds and no memory.
"""

import math
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lddgan_kernels._backend import use_backend

CONVOLUTIONS = (F.conv2d, F.conv_transpose2d)
# These count for the block that they are in.
LAYERS = (nn.Conv2d, nn.Linear, nn.ModuleList, nn.Sequential)


class Row(NamedTuple):
    """A block of a network.

    Attributes:
        name: where it is in the network; "" for what belongs to no block.
        kind: its class.
        output: shape of its output, without the batch.
        parameters: their number.
        macs: multiplications of a call.
    """

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    macs: int


class Summary(NamedTuple):
    """A network's costs for one image in float32.

    Attributes:
        rows: its blocks, in the order of execution.
        parameters: their number, in all of them.
        macs: multiplications of a call: convolutions with weights, linear layers and attention.
            Fixed filters, norms and activations are not counted, as is usual.
        peak_bytes: most that is alive at once in a call without gradients, input included.
        kept_bytes: what a call with gradients keeps for the backward pass.
    """

    rows: list[Row]
    parameters: int
    macs: int
    peak_bytes: int
    kept_bytes: int


def summarize(
    build: Callable[[], nn.Module], shapes: Sequence[tuple[int, ...]], method: str = "forward"
) -> Summary:
    """The costs of a network.

    Args:
        build: makes the network.
        shapes: of its inputs for one image, with the batch of 1; those of one dimension are steps
            (int64), the others float32.
        method: what is called: "encode" or "decode" of an autoencoder. Only the parameters of
            the modules that it runs are counted.

    Multiplications are counted in the reference composition; memory is that of the backend that
    would run.
    """
    with warnings.catch_warnings(), FakeTensorMode(allow_non_fake_inputs=True):
        # What is derived from a weight is kept by its address, which fakes lack.
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        module = build().eval()
        inputs = [
            torch.zeros(shape, dtype=torch.int64 if len(shape) == 1 else torch.float32)
            for shape in shapes
        ]
        call = getattr(module, method)
        with use_backend("reference"), _Products(module) as products:
            call(*inputs)
        with torch.no_grad():
            call(*inputs)  # what is derived from weights is made, once
            with _Live(inputs) as live:
                call(*inputs)
        kept = _kept_bytes(module, lambda: call(*inputs))
    rows = products.rows()
    return Summary(
        rows,
        sum(row.parameters for row in rows),
        sum(row.macs for row in rows),
        live.peak,
        kept,
    )


class _Products(TorchFunctionMode):
    """Counts multiplications, each for the innermost of the package's modules that runs."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.names = {part: name for name, part in module.named_modules()}
        self.running: list[nn.Module] = []
        self.macs: dict[nn.Module, int] = {}
        self.outputs: dict[nn.Module, tuple[int, ...]] = {}
        self.hooks: list[Any] = []

    def __enter__(self) -> "_Products":
        for part in self.module.modules():
            self.hooks.append(part.register_forward_pre_hook(self._start))
            self.hooks.append(part.register_forward_hook(self._end))
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        for hook in self.hooks:
            hook.remove()

    def _start(self, part: nn.Module, inputs: Any) -> None:
        self.running.append(part)
        self.macs.setdefault(part, 0)

    def _end(self, part: nn.Module, inputs: Any, output: Any) -> None:
        self.running.pop()
        first = next((leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)), None)
        self.outputs[part] = () if first is None else tuple(first.shape[1:])

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        macs = _macs(func, args, output)
        if macs:
            part = self.running[-1] if self.running else self.module
            self.macs[part] = self.macs.get(part, 0) + macs
        return output

    def rows(self) -> list[Row]:
        """One a block, in the order of execution, and one of what is left."""
        macs: dict[str, int] = {}
        for part, count in self.macs.items():
            macs[self._block(part)] = macs.get(self._block(part), 0) + count
        blocks = [name for name, count in macs.items() if count]
        parameters = dict.fromkeys(blocks, 0)
        ran = [self.names[part] + "." for part in self.macs]
        for name, parameter in self.module.named_parameters():
            if not any(name.startswith(prefix) or prefix == "." for prefix in ran):
                continue
            owner = max((b for b in blocks if name.startswith(b + ".")), key=len, default="")
            parameters[owner] = parameters.get(owner, 0) + parameter.numel()
        found = []
        for name, count in parameters.items():
            part = self.module.get_submodule(name)
            output = self.outputs.get(part, ())
            found.append(Row(name, type(part).__name__, output, count, macs.get(name, 0)))
        return found

    def _block(self, part: nn.Module) -> str:
        name = self.names[part]
        while isinstance(part, LAYERS) and "." in name:
            name = name.rpartition(".")[0]
            part = self.module.get_submodule(name)
        return name


def _macs(func: Any, args: Any, output: Any) -> int:
    """Multiplications of one call of a PyTorch function."""
    if func in CONVOLUTIONS:
        x, weight = args[:2]
        if not weight.requires_grad:
            return 0  # a fixed filter
        positions = x if func is F.conv_transpose2d else output
        return math.prod(positions.shape[2:]) * len(x) * weight.numel()
    if func is F.linear:
        return args[0].numel() // args[0].shape[-1] * args[1].numel()
    if func is F.scaled_dot_product_attention:
        q, k = args[:2]
        return q.numel() * k.shape[-2] + k.shape[-2] * output.numel()
    return 0


class _Live(TorchDispatchMode):
    """Follows the bytes of tensors that are alive, without the parameters."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.seen: weakref.WeakSet[Any] = weakref.WeakSet()
        for tensor in inputs:
            self._add(tensor)

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self.seen:
            return
        self.seen.add(storage)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, storage.nbytes())

    def _release(self, size: int) -> None:
        self.live -= size

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        given = {
            leaf.untyped_storage() for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf)
        }
        for leaf in tree_leaves(output):
            if torch.is_tensor(leaf) and leaf.untyped_storage() not in given:
                self._add(leaf)
        return output


def _kept_bytes(module: nn.Module, call: Callable[[], Any]) -> int:
    own = {parameter.untyped_storage()._cdata for parameter in module.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = call()
    del output
    return sum(storage.nbytes() for storage in kept.values())
