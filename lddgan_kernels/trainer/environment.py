"""Where figures come from: versions, processor, device, commit."""

import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from lddgan_kernels import _extension
from lddgan_kernels._version import __version__


def environment(device: torch.device | str) -> dict[str, str]:
    """Facts by what a person calls them; what is not known is left out."""
    facts = {
        "lddgan_kernels": __version__,
        "commit": _commit(),
        "PyTorch": str(torch.__version__),
        "Python": platform.python_version(),
        "processor": _processor(),
        "instruction set": _extension.build_info().get("cpu_isa", "reference (no extension)"),
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} cores",
    }
    if torch.device(device).type == "cuda":
        facts["GPU"] = torch.cuda.get_device_name(device)
        facts["CUDA"] = str(torch.version.cuda)
    return {name: value for name, value in facts.items() if value}


def command_line() -> str:
    """The command that this process is, as it can be typed again; "" for one that is no command."""
    package = Path(__file__).parents[1]
    program = Path(sys.argv[0]).resolve()
    if program.parent != package:
        return ""
    return shlex.join(["python", "-m", f"{package.name}.{program.stem}", *sys.argv[1:]])


def _processor() -> str:
    """Its name, as Linux or Python tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _commit() -> str:
    """Of the checkout that the package lies in; "" where it is installed otherwise."""
    folder, git = Path(__file__).parents[2], shutil.which("git")
    if git is None or not (folder / ".git").exists():
        return ""
    command = [git, "describe", "--always", "--dirty", "--exclude", "*"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return result.stdout.strip()
