"""Whether modules are still what they were."""

from torch import nn
from torch.nn.modules import module as _module


def is_hooked(module: nn.Module) -> bool:
    """Whether a forward hook would see a call of the module or of a part of it."""
    return bool(
        _module._global_forward_hooks
        or _module._global_forward_pre_hooks
        or any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    )


class ModuleState:
    """Parameters, buffers, submodules, forward hooks and training modes of some modules, as now.

    A change of them is seen: another weight, one written to or moved, another submodule, a hook.
    (Writing through `weight.data` or `.numpy()` hides from PyTorch and from this: call
    `torch.autograd.graph.increment_version` then. Other attributes are not looked at.)

    Args:
        modules: whose calls are to be recorded, or whose results kept.

    Attributes:
        recordable: whether calls can be recorded: there are no forward hooks, whose Python would be
            skipped, and no inference tensors, whose changes PyTorch does not count.
        trains: whether any part is in training mode.
    """

    def __init__(self, *modules: nn.Module) -> None:
        self._parts = [part for module in modules for part in module.modules()]
        self._modes = [part.training for part in self._parts]
        self.trains = any(self._modes)
        self._hooks = [h for p in self._parts for h in (p._forward_hooks, p._forward_pre_hooks)]
        self._hooks += [_module._global_forward_hooks, _module._global_forward_pre_hooks]
        self._children = [part._modules for part in self._parts]
        self._children_then = [dict(children) for children in self._children]
        self._owners = [owner for p in self._parts for owner in (p._parameters, p._buffers)]
        owned = [(owner, *item) for owner in self._owners for item in owner.items()]
        inference = any(t is not None and t.is_inference() for *_, t in owned)
        self.recordable = not inference and not any(self._hooks)
        self._marks = [
            (owner, name, t, t._version, t.data_ptr()) if t is not None else (owner, name, t, 0, 0)
            for owner, name, t in (owned if self.recordable else ())
        ]

    def holds(self) -> bool:
        """Whether they can be recorded and all is as it was."""
        if (
            not self.recordable
            or any(self._hooks)
            or self._children != self._children_then
            or self._modes != [part.training for part in self._parts]
            or sum(map(len, self._owners)) != len(self._marks)
        ):
            return False
        for owner, name, tensor, version, address in self._marks:
            if owner.get(name) is not tensor or (
                tensor is not None and (tensor._version != version or tensor.data_ptr() != address)
            ):
                return False
        return True
