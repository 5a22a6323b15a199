"""The CUDA kernels on the emulated runtime: limits of GPUs, barriers, the order of threads."""

import ctypes
import random
import re
from pathlib import Path

import pytest
import torch

from lddgan_kernels.ops._norm_plan import DeviceSize, NormPlan, onchip_bytes, plan_norm, split_bytes
from tests.conftest import EMULATED_CUDA, emulated_cuda_path

pytestmark = pytest.mark.skipif(not EMULATED_CUDA, reason="the emulated CUDA module is not built")

CUDA = Path(__file__).parents[1] / "csrc" / "cuda"
# Compute capability -> multiprocessors, shared bytes of a block, blocks of a cluster.
CARDS = {
    75: DeviceSize(40, 65536, 1),
    80: DeviceSize(108, 166912, 1),
    86: DeviceSize(84, 101376, 1),
    90: DeviceSize(132, 232448, 8),
    120: DeviceSize(170, 101376, 8),
}
LAST, FIRST = torch.channels_last, torch.contiguous_format


@pytest.fixture
def machine():
    """The emulated machine's settings, put back afterwards."""
    library = ctypes.CDLL(str(emulated_cuda_path()))
    library.emulation_set_order.argtypes = [ctypes.c_uint64]
    launches(library)
    yield library
    library.emulation_set_card(90)
    library.emulation_set_order(1)
    library.emulation_set_dry(0)
    library.emulation_skip_barrier(b"")


def launches(machine):
    """(blocks, threads, cluster, shared bytes) of each launch since the last call."""
    found = (ctypes.c_uint64 * 4000)()
    count = machine.emulation_launches(found, 1000)
    return [tuple(found[4 * i : 4 * i + 4]) for i in range(count)]


def numbers(plans):
    return [n for plan in plans for n in (plan.kind == "onchip", plan.groups, plan.parts)]


def norm(x, groups, plans):
    """Output and gradients of the operators with such plans."""
    ops = torch.ops.lddgan_emulated
    n, c = x.shape[:2]
    scale, shift = torch.randn(n, c).to(x.dtype), torch.randn(n, c).to(x.dtype)
    bias = torch.randn(n, c).to(x.dtype)
    plan = numbers(plans)
    out, statistics = ops.ada_group_norm_forward(
        x, None, bias, scale, shift, groups, 1e-6, True, plan
    )
    grads = ops.ada_group_norm_backward(
        out, x, None, bias, scale, shift, statistics, groups, True, plan
    )
    return [out, *grads]


def random_problems():
    """(shape, groups, dtype, layout): seeded; the widest groups and those once too large first."""
    yield (256, 512, 9, 9), 1, torch.bfloat16, LAST
    yield (64, 512, 7, 7), 1, torch.bfloat16, LAST
    yield (2, 4096, 16, 16), 1, torch.float32, LAST
    yield (1, 4096, 5, 3), 1, torch.float32, FIRST
    yield (1, 128, 16, 16), 32, torch.bfloat16, LAST
    draw = random.Random(15)
    for _ in range(120):
        groups = draw.choice((1, 1, 2, 3, 8, 32))
        channels = groups * draw.choice((1, 3, 4, 8, 12, 16, 40, 128, 257, 512))
        height, width = draw.choice((1, 2, 5, 7, 8, 9, 16, 32)), draw.choice((1, 3, 8, 9, 16, 40))
        samples = draw.choice((1, 2, 16, 100))
        while samples * channels * height * width > 1 << 22:
            samples, channels = max(samples // 4, 1), max(channels // 4 // groups, 1) * groups
        dtype = draw.choice((torch.float32, torch.bfloat16, torch.float16))
        yield (samples, channels, height, width), groups, dtype, draw.choice((FIRST, LAST))


@pytest.mark.parametrize("capability", CARDS)
def test_plans_fit_every_gpu(machine, capability):
    assert machine.emulation_set_card(capability)
    machine.emulation_set_dry(1)
    device = CARDS[capability]
    kinds = set()
    for shape, groups, dtype, layout in random_problems():
        n, c, h, w = shape
        x = torch.empty(shape, dtype=dtype).to(memory_format=layout)
        last = not x.is_contiguous()
        problem = (n, c // groups, groups, h * w)
        plans = plan_norm(problem, x.element_size(), last, "cuda", device)
        norm(x, groups, plans)  # raises where a limit is passed
        for plan, found in zip(plans, _by_plan(plans, launches(machine)), strict=True):
            kinds.add((plan.kind, plan.parts > 1))
            most = max(shared for _, _, _, shared in found)
            assert all(threads <= 256 for _, threads, _, _ in found)
            if plan.kind == "onchip":
                held = 1 if plan is plans[0] else 2
                planned = onchip_bytes(
                    problem, plan.groups, plan.parts, held, x.element_size(), last
                )
                assert found[0][2] == plan.parts
                assert most in planned, (shape, groups, dtype, plan)  # to the byte
            else:
                planned = [split_bytes(plan, problem, x.element_size(), last)]
            assert most <= max(planned) <= device.shared_bytes, (shape, groups, dtype, plan)
    assert ("split", True) in kinds
    assert ("onchip", device.max_cluster > 1) in kinds


def _by_plan(plans, found):
    """The launches of forward and of backward."""
    forward = 1 if plans[0].kind == "onchip" else 2
    return found[:forward], found[forward:]


def test_small_batches_spread_over_the_device():
    """By fewer groups a block as long as that is enough, then by clusters."""
    for capability in (90, 120):
        for hw, groups, parts in ((256, 2, 1), (4096, 4, 8)):
            problem, device = (1, 4, 32, hw), CARDS[capability]
            forward, _ = plan_norm(problem, 2, True, "cuda", device)
            assert forward == NormPlan("onchip", groups, parts, 1)


def test_too_wide_groups_are_refused():
    with pytest.raises(RuntimeError, match="groups of 9000 channels do not fit this GPU"):
        plan_norm((1, 9000, 1, 64), 4, True, "cuda", CARDS[86])


ONCHIP, CLUSTER = NormPlan("onchip", 2, 1, 1), NormPlan("onchip", 2, 2, 1)
SPLIT = NormPlan("split", 2, 2, 2)


def test_launches_are_held_to_the_card(machine):
    x = torch.randn(1, 16, 8, 8)
    machine.emulation_set_card(80)
    with pytest.raises(RuntimeError, match="error 801"):  # what sm_80 code says on any GPU
        norm(x, 4, (CLUSTER, CLUSTER))
    machine.emulation_set_card(75)
    x = torch.randn(1, 16, 64, 64)
    with pytest.raises(RuntimeError, match="asks for .* shared bytes of 65536"):
        norm(x, 4, (ONCHIP, ONCHIP))


def calls():
    """Calls of every kernel that has a barrier."""
    x = torch.randn(2, 16, 6, 8)
    for layout in (FIRST, LAST):
        image = x.to(memory_format=layout)
        for plan in (ONCHIP, CLUSTER, SPLIT):
            yield lambda image=image, plan=plan: norm(image, 4, (plan, plan))
    ops = torch.ops.lddgan_emulated
    last = x.to(memory_format=LAST)

    def residual():
        return ops.residual_scale_moments(last, last, None, None, 0.5, 4, [2, 2])  # groups, parts

    def resample():
        _, moments = residual()
        rows = torch.randn(2, 16)
        return ops.norm_resample(last, None, rows, rows, 4, 1e-6, True, False, moments)

    yield residual
    yield resample


def test_threads_run_in_any_order(machine):
    for call in calls():
        found = []
        for seed in (1, 2, 3):
            machine.emulation_set_order(seed)
            torch.manual_seed(0)
            found.append(call())
        for other in found[1:]:
            assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def barriers():
    """ "file:line" of every barrier in csrc/cuda."""
    return [
        f"{path.name}:{number}"
        for path in sorted(CUDA.iterdir())
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"^\s*(__syncthreads|cluster\.sync)\(\);", line)
    ]


@pytest.mark.parametrize("place", barriers())
def test_every_barrier_is_needed(machine, place):
    machine.emulation_skip_barrier(place.encode())
    with pytest.raises(RuntimeError, match=r"without a .*barrier|nobody wrote|leave"):
        _all(calls())


def _all(calls):
    for call in calls:
        call()


def test_accesses_outside_a_tensor_are_found(machine):
    x = torch.randn(2, 16, 6, 8)
    short = torch.randn(2, 16, 6, 8)
    short.untyped_storage().resize_(short.untyped_storage().nbytes() - 32)
    with pytest.raises(RuntimeError, match="16 bytes past the end of a tensor"):
        torch.ops.lddgan_emulated.residual_scale(x, short)
