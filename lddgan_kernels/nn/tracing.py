"""Whether somebody else looks at a call while it runs."""

import torch

from lddgan_kernels._backend import transformed


def is_traced() -> bool:
    """Whether calls are being traced or transformed: compiled, exported, under jit.trace, make_fx
    or torch.func.

    Layers then run as they are written, from their weights, without what they keep of them.
    """
    return (
        torch.compiler.is_compiling()
        or transformed()
        or torch.jit.is_tracing()  # type: ignore[attr-defined]
        or torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None
    )
