"""The operators called by hand (`torch.ops.lddgan`): none reads or writes past its tensors."""

import sys

import pytest
import torch

from lddgan_kernels import _extension
from lddgan_kernels.diffusion import Schedule
from lddgan_kernels.ops import diffuse_pair, posterior_sample
from lddgan_kernels.ops.conv3x3 import pack_conv3x3
from lddgan_kernels.ops.packed_conv2d import pack_conv2d
from tests.conftest import backends_of, device_of

pytestmark = pytest.mark.skipif(not _extension.is_loaded(), reason="the extension is not compiled")

BACKENDS = backends_of(sys.modules["lddgan_kernels.ops.posterior_sample"])
N = 3
LAST = torch.channels_last
SCHEDULE = Schedule(4)
POSTERIOR = ("posterior_mean_coef1", "posterior_mean_coef2", "posterior_log_variance_clipped")
PAIR = ("a_s", "sigmas", "a_s_cum", "sigmas_cum")


def tables(names, device="cpu"):
    return {name: getattr(SCHEDULE, name).to(device) for name in names}


def calls(device="cpu"):
    """(arguments by name, in order) of a right call of each diffusion operator."""
    x = torch.randn(N, 4, 6, 5, device=device)
    t, seeds = torch.arange(N, device=device), torch.arange(N, device=device)
    last = {"seeds": seeds, "noise": None, "stream": 2, "step": 0}
    return {
        "posterior_sample": {
            **{"x0": x, "x_next": x + 1, "t": t},
            **tables(POSTERIOR, device),
            **last,
        },
        "posterior_sample_backward": {"grad": x, "t": t, **tables(POSTERIOR[:2], device)},
        "diffuse_pair": {
            **{"x0": x, "t": t, **tables(PAIR, device), "seeds": seeds},
            **{"noise_t": None, "noise_next": None, "stream_t": 3, "stream_next": 4, "step": 0},
        },
    }


def wrong(name, value):
    """What an argument must not be."""
    if value.dim() == 1 and value.dtype == torch.float32:  # a table
        return [value[:-1], value[:0], torch.cat([value, value]), value.repeat(2)[::2]]
    if value.dim() == 1:  # t, seeds
        return [value[:-1], value[:1].expand(N), value.repeat(2)[::2], value[:, None]]
    bad = [value[:1].expand(N, -1, -1, -1), value[..., ::2], value[0]]
    return bad + ([value[:1], value.to(memory_format=LAST), value.bfloat16()] * (name != "x0"))


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
@pytest.mark.parametrize("name", calls())
def test_diffusion(name, backend):
    """A wrong shape, stride or dtype of any argument, and tables of unequal length, are refused."""
    if backend not in BACKENDS:
        pytest.skip("no CUDA kernels")
    right = calls(device_of(backend))[name]
    op = getattr(torch.ops.lddgan, name)
    op(*right.values())
    given = {key: right["x0"] for key in right if key.startswith("noise")}
    if given:
        op(*(right | given | {"seeds": None}).values())
    for call in (right, right | given | {"seeds": None}) if given else (right,):
        for argument, value in call.items():
            if not isinstance(value, torch.Tensor) or argument == "grad":
                continue
            for bad in wrong(argument, value):
                with pytest.raises((ValueError, RuntimeError)):
                    op(*(call | {argument: bad}).values())
    for bad in wrong("x0", right["grad"]) if "grad" in right else ():
        with pytest.raises((ValueError, RuntimeError)):
            op(*(right | {"grad": bad}).values())


@pytest.mark.parametrize("backend", [None, *BACKENDS])
@pytest.mark.parametrize("table", POSTERIOR + PAIR)
def test_a_schedule_with_tables_of_unequal_length(table, backend):
    schedule = Schedule(4, device_of(backend))
    x = torch.randn(N, 4, 6, 5, device=device_of(backend))
    t = torch.arange(N, device=device_of(backend))
    for entries in (getattr(schedule, table)[:-1], getattr(schedule, table).repeat(2)):
        broken = Schedule(4, device_of(backend))
        setattr(broken, table, entries)
        images = (x, x) if table in POSTERIOR else (x,)
        op = posterior_sample if table in POSTERIOR else diffuse_pair
        with pytest.raises(ValueError, match="must be .*of"):
            op(*images, t, broken, t, backend=backend)


def other_calls():
    """Right calls, and which tensors of theirs are made wrong how."""
    x = torch.randn(4, 32, 6, 6)
    last = x.to(memory_format=LAST)
    strided, expanded, bias = torch.randn(4, 32, 6, 12)[..., ::2], x[:1].expand_as(x), x[0, :, 0, 0]
    weight = torch.randn(32, 32, 3, 3)
    winograd, packed = pack_conv3x3(weight), pack_conv2d(weight, (1, 4, 4)).weight
    row = torch.randn(5, 8)
    return [
        ("bias_act", (x, bias.contiguous(), True), {0: [strided, expanded], 1: [bias[:5]]}),
        (
            "bias_act_backward",
            (x, x, bias.contiguous(), True),
            {0: [expanded, x.half(), last], 1: [strided, x[:2]], 2: [bias[:5]]},
        ),
        ("minibatch_stddev", (x, 4), {0: [strided, expanded, x[:3]]}),
        (
            "minibatch_stddev_backward",
            (torch.randn(4, 33, 6, 6), x, 4),
            {0: [x, torch.randn(4, 33, 6, 6).half()], 1: [strided, expanded, last]},
        ),
        ("nearest_code", (x, torch.randn(7, 32)), {0: [strided, expanded], 1: [row]}),
        ("pixel_norm", (row,), {0: [row[:, ::2], row[:1].expand(5, 8)]}),
        ("pixel_norm_backward", (row, row), {0: [row.half(), row[:4]], 1: [row[:, ::2]]}),
        (
            "residual_scale",
            (x, x, x, None, 1.0),
            {0: [strided, expanded], 1: [x.half(), x[:2], last], 2: [x.half(), expanded]},
        ),
        (
            "seeded_normal",
            ([4, 2], torch.arange(4), 0, 0, torch.float32, False),
            {1: [torch.arange(5), torch.arange(3)]},
        ),
        ("pack_conv3x3", (weight, False), {0: [weight[..., :1], weight[0], weight[:5]]}),
        (
            "conv3x3",
            (last, winograd, bias.contiguous(), last),
            {0: [x, last[:, :16]], 1: [winograd[:, :9], weight], 2: [bias[:5]], 3: [x, last[:1]]},
        ),
        (
            "packed_conv2d",
            (last, packed, 3, bias.contiguous(), last),
            {0: [x, last[:, :16]], 1: [packed[:, :9], weight], 2: [bias[:5]], 3: [x, last[:1]]},
        ),
        ("haar_dwt2d", (x, 1.0), {0: [strided, expanded, x[..., 1:]]}),
        ("upfirdn2d", (x, row[0], 2, 1, [0] * 4, False), {0: [strided, expanded, x[..., :2, :2]]}),
    ]


@pytest.mark.parametrize(
    ("name", "right", "changes"), other_calls(), ids=lambda v: v if isinstance(v, str) else ""
)
def test_others(name, right, changes):
    op = getattr(torch.ops.lddgan, name)
    op(*right)
    for place, values in changes.items():
        for bad in values:
            with pytest.raises((ValueError, RuntimeError)):
                op(*right[:place], bad, *right[place + 1 :])


def test_packed_conv2d_has_an_odd_kernel():
    x = torch.randn(1, 32, 4, 4).to(memory_format=LAST)
    with pytest.raises(RuntimeError, match="packed must come from pack_conv2d"):
        torch.ops.lddgan.packed_conv2d(x, torch.randn(1, 4 * 32, 32), 2, None, None)
