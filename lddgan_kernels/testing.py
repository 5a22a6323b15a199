"""The error rule of this project and other processors, for tests and for checks by hand.

Error = max |out - ref| / max |ref| against a float64 reference on the same inputs. Ours must be at
most twice the error of the plain PyTorch composition in the same dtype, plus one unit roundoff.
"""

import math

import torch
from torch import Tensor

# Settings of the environment that make a newer x86 processor one of the named instruction set, for
# oneDNN, PyTorch and this library alike. From the least to the most.
INSTRUCTION_SETS = {
    isa: {"ONEDNN_MAX_CPU_ISA": onednn, "ATEN_CPU_CAPABILITY": aten, "LDDGAN_CPU_ISA": isa}
    for isa, onednn, aten in (
        ("avx2", "AVX2", "avx2"),
        ("avx512", "AVX512_CORE", "avx512"),
        ("avx512bf16", "AVX512_CORE_BF16", "avx512"),
    )
}


def instruction_sets() -> list[str]:
    """Those of `INSTRUCTION_SETS` that this processor has."""
    has = torch.cpu.get_capabilities()
    found = [
        ("avx2", has.get("avx2") and has.get("fma3")),
        ("avx512", has.get("avx512_f") and has.get("avx512_bw") and has.get("avx512_dq")),
        ("avx512bf16", has.get("avx512_bf16")),
    ]
    return [isa for isa, is_there in found if is_there]


def relative_error(out: Tensor, exact: Tensor) -> float:
    """max |out - exact| / max |exact|; `exact` is float64. Empty tensors have no error."""
    if out.shape != exact.shape:
        raise AssertionError(f"shape {tuple(out.shape)} differs from {tuple(exact.shape)}")
    if exact.numel() == 0:
        return 0.0
    difference = (out.detach().double().cpu() - exact.detach().double().cpu()).abs().max().item()
    scale = exact.detach().double().abs().max().item()
    if math.isnan(difference):
        return math.inf
    return difference / scale if scale > 0 else difference


def unit_roundoff(dtype: torch.dtype) -> float:
    """The largest relative error of rounding to `dtype`: half its machine epsilon."""
    return torch.finfo(dtype).eps / 2


def assert_error_rule(actual: Tensor, plain: Tensor, exact: Tensor, what: str = "output") -> None:
    """Asserts the error rule.

    Args:
        actual: our result, in its own dtype.
        plain: the plain PyTorch composition's result in the same dtype on the same inputs.
        exact: the float64 reference's result on the same inputs.
        what: named in the failure message.
    """
    if actual.dtype != plain.dtype:
        raise AssertionError(
            f"{what}: dtype {actual.dtype}, the plain composition has {plain.dtype}"
        )
    ours, theirs = relative_error(actual, exact), relative_error(plain, exact)
    allowed = 2 * theirs + unit_roundoff(actual.dtype)
    if not ours <= allowed:
        raise AssertionError(
            f"{what}: error {ours:.3e} exceeds {allowed:.3e} "
            f"(twice the plain composition's {theirs:.3e} plus one roundoff of {actual.dtype})"
        )
