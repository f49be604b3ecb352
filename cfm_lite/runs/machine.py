"""The machine of a run: its device and memory, the facts that repeat it, and JSON on its disk."""

import contextlib
import functools
import json
import math
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import cfm_lite
from cfm_lite._internal.checks import check_choice
from cfm_lite._internal.places import expanded
from cfm_lite.data.root import checkout
from cfm_lite.engine import checkpoint
from cfm_lite.engine.parallel import World, ranks_of_environment
from cfm_lite.errors import ConfigError

__all__ = ["check_batch", "facts", "finite", "peak_memory", "pick_device", "write_json"]


def pick_device(name: str = "auto") -> torch.device:
    """The device called "auto" (CUDA if there is one, else the CPU), "cpu", "cuda" or "mps".

    ConfigError if this machine does not have it. If torchrun started several processes, each takes
    its own GPU (`World.place`).

    >>> pick_device("cpu")
    device(type='cpu')
    """
    check_choice("device", name, ("auto", "cpu", "cuda", "mps"))
    present = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if name == "auto":
        name = "cuda" if present["cuda"] else "cpu"
    if not present[name]:
        raise ConfigError(
            f"device is {name!r}, which this machine or this build of torch does not have; use "
            "--device cpu."
        )
    device = torch.device(name)
    return World(*ranks_of_environment()).place(device) if name == "cuda" else device


def peak_memory(device: torch.device) -> int:
    """The most bytes held so far: torch's on a GPU, else this process's in main memory (0 if
    unknown).

    >>> peak_memory(torch.device("cpu")) >= 0
    True
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource  # absent on Windows
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def check_batch(size: int, shape: tuple[int, ...], device: torch.device) -> None:
    """ConfigError for a batch of `size` samples whose data and noise do not fit into the memory.

    >>> check_batch(256, (3, 32, 32), torch.device("cpu"))  # it fits
    """
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    elif hasattr(os, "sysconf"):  # absent on Windows
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    else:
        return
    one = 8 * math.prod(shape)  # float32, of the data and of the noise
    if size * one > memory:
        raise ConfigError(
            f"batch is {size}; its data and noise alone need {size * one / 2**30:,.0f} GiB, and "
            f"there are {memory / 2**30:,.0f} GiB of memory. Use at most {memory // one}, or far "
            "less: the network needs memory too."
        )


def facts(device: torch.device | str = "cpu") -> dict[str, Any]:
    """What a reader needs to repeat the run: versions, commit, machine, device.

    >>> facts()["torch"] == torch.__version__
    True
    """
    return {
        "cfm_lite": cfm_lite.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device)
        if torch.device(device).type == "cuda"
        else str(device),
        "commit": _commit(),
    }


def _processor() -> str:
    """The processor's name from Linux, else from Python."""
    table = Path("/proc/cpuinfo")
    lines = table.read_text(encoding="utf-8").splitlines() if table.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


@functools.cache
def _commit() -> str | None:
    """The commit of the checkout, or None for an installed package."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["git", "-C", str(checkout() or os.devnull), "rev-parse", "HEAD"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
        return done.stdout.strip()
    return None


def write_json(path: str | Path, value: Any) -> Path:
    """Write `value` as JSON, whole or not at all. Numbers that are not finite become null, as JSON
    has none.

    >>> import tempfile
    >>> write_json(Path(tempfile.mkdtemp()) / "row.json", {"value": math.inf}).read_text().split()
    ['{', '"value":', 'null', '}']
    """
    path = expanded(path)
    text = json.dumps(finite(value), indent=1, ensure_ascii=False) + "\n"
    # a name of a file may hold bytes that are not UTF-8: written as \udcXX, they are read again
    checkpoint.write_bytes(path, text.encode(errors="backslashreplace"))
    return path


def finite(value: Any) -> Any:
    """`value` as JSON can hold it: tensors as lists, and None for numbers that are not finite.

    >>> finite({"loss": torch.tensor([0.5, math.nan])})
    {'loss': [0.5, None]}
    """
    if isinstance(value, Tensor):
        return finite(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return value
