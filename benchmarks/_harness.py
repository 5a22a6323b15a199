"""One way to time everything.

A case is one shape, dtype, layout and direction of an op. Its sides (`ours`, `eager`, `compile`,
`copy`, ...) are first checked against each other, then timed interleaved in rounds, so that a slow
minute of the machine hits all of them. Reported: p20/p50/p80 and the ratio of medians.

On the CPU a stock allocator maps fresh pages for every large output and drowns the kernels: the
harness re-executes itself with glibc's thresholds raised, for every side alike. On a GPU inputs
rotate through more memory than the L2 cache holds, and replayed CUDA graphs are timed.
"""

import functools
import getpass
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import _turns
from lddgan_kernels import _extension
from lddgan_kernels._bfloat16 import multiplies_bfloat16
from lddgan_kernels.testing import INSTRUCTION_SETS

RESULTS = Path(__file__).parent / "results"
TUNABLES = (
    "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=4294967296:"
    "glibc.malloc.top_pad=268435456"
)


@dataclass
class Case:
    """One row of a benchmark.

    Attributes:
        name: what is timed: shape, dtype, layout, direction.
        group: rows of one group share a geometric mean.
        inputs: makes one set of input tensors.
        sides: name -> function of those inputs. "ours" is compared with every other.
        check: asserts that the sides agree, before anything is timed.
        bytes_moved: the least bytes read and written, for the share of the copy bandwidth.
        flops: arithmetic, where it bounds.
        targets: other side -> the ratio that was asked for.
        share: of the group's work; then the group's ratio is that of sums, not a geometric mean.
        best: name -> sides; the fastest of them counts as a further side of that name.
        facts: more to store and print with the row, from our seconds a call.
        as_called: on a GPU the sides are called from Python as users do, not replayed as graphs.
    """

    name: str
    group: str
    inputs: Callable[[], tuple]
    sides: dict[str, Callable]
    check: Callable[[], None]
    bytes_moved: int
    flops: int = 0
    targets: dict[str, float] = field(default_factory=dict)
    share: float | None = None
    best: dict[str, tuple[str, ...]] = field(default_factory=dict)
    facts: Callable[[float], dict] = lambda seconds: {}
    as_called: bool = False


def device() -> torch.device:
    """Where benchmarks run: the GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name() -> str:
    """The name under which results are stored: a GPU's, or a CPU's with what it runs."""
    if torch.cuda.is_available():
        return _slug(torch.cuda.get_device_name())
    model = torch.cpu.get_capabilities().get("cpu_name", platform.machine())
    isa = _extension.build_info().get("cpu_isa", "reference")
    limited = "ONEDNN_MAX_CPU_ISA" in os.environ
    matrix_units = "-amx" if torch.cpu._is_amx_tile_supported() and not limited else ""
    return f"{_slug(model)}-{isa}{matrix_units}-{torch.get_num_threads()}threads"


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def network_dtypes() -> list[torch.dtype]:
    """Those that networks are measured in: bfloat16 where the device multiplies it."""
    return [torch.float32] + [torch.bfloat16] * multiplies_bfloat16(device())[0]


def form_name(dtype: torch.dtype, layout: torch.memory_format) -> str:
    """Dtype and layout as groups name them: "float32 channels_last"."""
    layout_name = "channels_last" if layout == torch.channels_last else "contiguous"
    return f"{str(dtype).removeprefix('torch.')} {layout_name}"


def ensure_environment(isa: str | None = None) -> None:
    """Re-executes this process where its environment lacks what every side is to run under.

    An allocator that does not fault in large outputs anew; and `isa`, one of INSTRUCTION_SETS.
    """
    wanted = INSTRUCTION_SETS[isa] if isa else {}
    if isa:  # code that PyTorch compiled for another set and kept would run, and add up wrong
        kept = Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}_{isa}"
        wanted = wanted | {"TORCHINDUCTOR_CACHE_DIR": str(kept)}
    if sys.platform == "linux":
        wanted = wanted | {"GLIBC_TUNABLES": TUNABLES}
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.environ.update(wanted)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def with_gradient(fn: Callable[..., Tensor], needs: Sequence[int]) -> Callable:
    """fn's forward and backward in one call; `needs` are the positions of differentiated inputs.

    The last input is the incoming gradient.
    """

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        *args, grad = inputs
        for i in needs:
            args[i] = args[i].detach().requires_grad_()
        return torch.autograd.grad(fn(*args), [args[i] for i in needs], grad)

    return run


def fresh_compile(fn: Callable, **options: object) -> Callable:
    """torch.compile of fn, unaffected by what earlier cases compiled (no recompile limit)."""
    torch._dynamo.reset()
    return torch.compile(fn, dynamic=False, **options)


def call_in_turn(fn: Callable, inputs: Sequence[tuple], repeats: int) -> None:
    """Calls fn `repeats` times, on one set of inputs after the other."""
    for i in range(repeats):
        fn(*inputs[i % len(inputs)])


def time_once(fn: Callable, inputs: tuple, repeats: int) -> float:
    """Seconds a call, by the clock of the device that the first input is on."""
    return _time(lambda: call_in_turn(fn, [inputs], repeats), _on_gpu(inputs)) / repeats


def _on_gpu(inputs: tuple) -> bool:
    return bool(inputs) and isinstance(inputs[0], Tensor) and inputs[0].is_cuda


def _time(run: Callable[[], None], on_gpu: bool) -> float:
    if on_gpu:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def recorded_calls(fn: Callable, inputs: Sequence[tuple], repeats: int) -> Callable[[], None]:
    """The calls as a CUDA graph: replayed, they take the kernels' time and not Python's."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call_in_turn(fn, inputs, 3)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call_in_turn(fn, inputs, repeats)
    return graph.replay


def _copies(bytes_moved: int) -> int:
    """Sets of inputs that together are three times the cache, so that each call finds it cold."""
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    return min(256, max(1, math.ceil(3 * cache / max(bytes_moved, 1))))


def measure(case: Case, seconds: float = 0.6, min_rounds: int = 5) -> dict[str, list[float]]:
    """Seconds a call of each side: [p20, p50, p80] over interleaved rounds.

    On a GPU a round replays a graph of calls on inputs in turn; what cannot be captured is called
    from Python, and that is printed.

    Args:
        seconds: about how long each side runs in all.
        min_rounds: how many rounds at the least; 3 where one takes half a minute or more.
    """
    inputs = [case.inputs()]
    on_gpu = _on_gpu(inputs[0])
    if on_gpu:
        inputs += [case.inputs() for _ in range(_copies(case.bytes_moved) - 1)]
    rounds: dict[str, tuple[Callable[[], None], int]] = {}
    short, round_seconds = set(), 0.0
    for name, fn in case.sides.items():
        fn(*inputs[0])
        once = time_once(fn, inputs[-1], 1)
        if once < seconds / 10:
            once = min(once, *(time_once(fn, inputs[0], 1) for _ in range(4)))
        if once < 0.5:
            short.add(name)
        round_seconds += once
        repeats = max(1, min(1000, int(seconds / min_rounds / max(once, 1e-7) / 2)))
        run = functools.partial(call_in_turn, fn, inputs, repeats)
        if on_gpu and not case.as_called:
            # Each set at least once, but no more nodes than a graph takes well.
            repeats = min(max(repeats, len(inputs)), 1000)
            try:
                run = recorded_calls(fn, inputs, repeats)
            except RuntimeError as error:
                torch.cuda.synchronize()
                print(f"    {name} is called, not replayed: {str(error).splitlines()[0]}")
                run = functools.partial(call_in_turn, fn, inputs, repeats)
        rounds[name] = run, repeats
    if round_seconds >= 30:
        min_rounds = 3
    times: dict[str, list[float]] = {name: [] for name in case.sides}
    begin = time.perf_counter()
    limit = seconds * len(case.sides)
    while len(times["ours"]) < min_rounds or (
        time.perf_counter() - begin < limit and len(times["ours"]) < 30
    ):
        for name, (run, repeats) in rounds.items():
            # Not among what the side before left in heap and caches, nor beside its threads:
            # those of ONNX Runtime go on spinning for a while, 34 ms of the next side's here.
            if name in short:
                case.sides[name](*inputs[-1])
            times[name].append(_time(run, on_gpu) / repeats)
    found = {
        name: [sorted(values)[int(q * (len(values) - 1))] for q in (0.2, 0.5, 0.8)]
        for name, values in times.items()
    }
    for name, sides in case.best.items():
        found[name] = min((found[side] for side in sides), key=lambda quantiles: quantiles[1])
    return found


@functools.cache
def copy_bandwidth(size: int = 1 << 28) -> float:
    """Bytes a second, read and written, of a large copy on the benchmark device."""
    x = torch.empty(size // 4, device=device())
    y = torch.empty_like(x)
    times = [time_once(lambda a, b: b.copy_(a), (x, y), 3) for _ in range(9)]
    return 2 * size / sorted(times)[len(times) // 2]


def geometric_mean(values: Iterable[float]) -> float:
    values = list(values)
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan


def _ratio(rows: list[dict], side: str) -> float:
    """A side's time over ours, in all rows of a group."""
    theirs = [row["seconds_p20_p50_p80"][side][1] for row in rows]
    ours = [row["seconds_p20_p50_p80"]["ours"][1] for row in rows]
    shares = [row["share"] for row in rows]
    if None in shares:
        return geometric_mean(a / b for a, b in zip(theirs, ours, strict=True))
    total = [sum(s * t for s, t in zip(shares, times, strict=True)) for times in (theirs, ours)]
    return total[0] / total[1]


def _commit() -> str:
    """The last commit of more than stored results, with "-dirty" where files differ from it."""
    git = shutil.which("git")
    if git is None:  # results are worth more than where they came from
        return "unknown"

    def ask(*arguments: str) -> str:
        command = [git, *arguments, "--", ":/", ":(exclude,top)benchmarks/results"]
        result = subprocess.run(command, cwd=RESULTS.parent, capture_output=True, text=True)
        return result.stdout.strip()

    commit = ask("log", "-1", "--format=%h") or "unknown"
    return commit + "-dirty" * bool(ask("status", "--porcelain", "--untracked-files=no"))


def store(benchmark: str, rows: list[dict], complete: bool = True) -> str:
    """Writes a benchmark's rows to results/<device>.json, among those of earlier runs; says where.

    A row replaces that of the same name; each keeps the commit that it was measured on. Not from a
    working tree with changes: nobody could measure it again.
    """
    commit = _commit()
    if commit.endswith("-dirty"):
        return "not stored: there are changes that are not committed"
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{device_name()}.json"
    data = json.loads(path.read_text()) if path.exists() else {}
    origin = {"commit": commit, "date": date.today().isoformat(), "torch": torch.__version__}
    found = data.get(benchmark, {"rows": [], "complete": False})
    merged = {row["name"]: row for row in found["rows"] + [row | origin for row in rows]}
    data[benchmark] = {
        "complete": complete or found["complete"],
        "summary": _summary([row for row in merged.values() if "group" in row]),
        "rows": list(merged.values()),
    }
    path.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n")
    return f"stored in {path}"


def run(benchmark: str, cases: Iterable[Case], seconds: float = 0.6, only: str = "") -> dict:
    """Checks, times, prints and stores all cases of a benchmark; returns the summary.

    The summary maps group -> side -> {"ratio": geometric mean of side/ours, "target": asked for}.
    Where it is interrupted, the cases so far are stored, and the interruption goes on. `only`: of
    the cases, those whose names match this.
    """
    print(f"{benchmark} on {device_name()}")
    rows: list[dict] = []
    complete = False
    try:
        for case in cases:
            if re.search(only, case.name):
                rows.append(_row(case, seconds))
        complete = not only
    finally:
        summary = _summary(rows)
        for group, sides in summary.items():
            for side, found in sides.items():
                print(f"{benchmark} | {group}: {_verdict(side, **found)}")
        if rows:
            with _turns.results():
                print(store(benchmark, rows, complete), flush=True)
    return summary


def _row(case: Case, seconds: float) -> dict:
    """Checks, times and prints a case."""
    with _turns.machine(alone=False):
        case.check()
        inputs = case.inputs()
        for side in case.sides.values():
            side(*inputs)  # compiles, packs, fills caches
    with _turns.machine(alone=True):
        return _timed_row(case, seconds)


def _timed_row(case: Case, seconds: float) -> dict:
    bandwidth = copy_bandwidth()
    times = measure(case, seconds)
    ours = times["ours"][1]
    ratios = {name: t[1] / ours for name, t in times.items() if name != "ours"}
    share = case.bytes_moved / ours / bandwidth
    shown = "  ".join(f"{name} {ratio:6.2f}x" for name, ratio in ratios.items())
    print(f"  {case.name:58s} {ours * 1e6:10.1f} us  {share:6.1%} of copy  {shown}", flush=True)
    facts = case.facts(ours)
    for name, value in facts.items():
        if not isinstance(value, dict):
            print(f"    {name}: {value:.4g}", flush=True)
    return {
        "name": case.name,
        "group": case.group,
        "bytes_moved": case.bytes_moved,
        "flops": case.flops,
        "share_of_copy": share,
        "seconds_p20_p50_p80": times,
        "targets": case.targets,
        "share": case.share,
        **facts,
    }


def _summary(rows: list[dict]) -> dict:
    summary: dict = {}
    for group in dict.fromkeys(row["group"] for row in rows):
        members = [row for row in rows if row["group"] == group]
        for side in members[0]["seconds_p20_p50_p80"]:
            if side != "ours":
                having = [row for row in members if side in row["seconds_p20_p50_p80"]]
                found = {"ratio": _ratio(having, side), "target": members[0]["targets"].get(side)}
                summary.setdefault(group, {})[side] = found
    return summary


def _verdict(side: str, ratio: float, target: float | None) -> str:
    asked = f" (asked {target:g}x: {'met' if ratio >= target else 'MISSED'})" if target else ""
    return f"{ratio:.2f}x over {side}{asked}"
