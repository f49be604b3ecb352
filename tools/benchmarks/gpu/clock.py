"""Times on a device: CUDA events around each step, the sides of a comparison in turn, so that heat
and clocks fall on all of them.
"""

import gc
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from tools.benchmarks.gpu.plan import Bench
from tools.benchmarks.harness import Row, Times

__all__ = [
    "clear",
    "device_facts",
    "held",
    "interleaved",
    "measured",
    "seconds_of",
    "without_syncs",
]

SMI = (
    "name",
    "driver_version",
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "power.draw",
    "power.limit",
    "temperature.gpu",
    "pstate",
)


def interleaved(
    bench: Bench,
    sides: Mapping[str, Callable[[], Any]],
    *,
    warmup: int | None = None,
    rounds: int | None = None,
    block: int | None = None,
) -> Times:
    """Seconds per call of every side; after the warm-up, rounds of a block of calls each, as many
    as the part's share allows.
    """
    plan = bench.plan
    for side in sides.values():
        for _ in range(plan.warmup if warmup is None else warmup):
            side()
    synchronize(bench)
    names, reads = list(sides), {name: [] for name in sides}
    gc.collect()
    for i in range(plan.rounds if rounds is None else rounds):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            reads[name] += [
                seconds_of(bench, sides[name])
                for _ in range(plan.block if block is None else block)
            ]
            synchronize(bench)
        if bench.late:
            break
    return Times({name: [read() for read in found] for name, found in reads.items()})


def seconds_of(bench: Bench, side: Callable[[], Any]) -> Callable[[], float]:
    """Call `side`. The returned function waits for the device, and returns the seconds that it
    took.
    """
    if not bench.on_gpu:
        since = time.perf_counter()
        side()
        took = time.perf_counter() - since
        return lambda: took
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    side()
    end.record()
    return lambda: start.elapsed_time(end) / 1000


def synchronize(bench: Bench) -> None:
    """Wait for the device."""
    if bench.on_gpu:
        torch.cuda.synchronize(bench.device)


def held(bench: Bench) -> int:
    """The bytes that tensors on the GPU take now, after what nobody uses was given back."""
    clear(bench)
    return torch.cuda.memory_allocated(bench.device) if bench.on_gpu else 0


def clear(bench: Bench) -> None:
    """Give back what a part held, after it failed too."""
    torch._dynamo.reset()
    gc.collect()
    if bench.on_gpu:
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(bench.device)


@contextmanager
def without_syncs(bench: Bench) -> Iterator[None]:
    """An error where the host waits for the device; on a CPU nothing is checked."""
    if not bench.on_gpu:
        yield
        return
    synchronize(bench)
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def device_facts(device: torch.device) -> dict[str, Any]:
    """Name, memory, versions, and what nvidia-smi says of clocks and power now."""
    if device.type != "cuda":
        return {"device": device.type}
    about = torch.cuda.get_device_properties(device)
    return {
        "device": about.name,
        "memory": about.total_memory,
        "multiprocessors": about.multi_processor_count,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nvidia_smi": _smi(torch.cuda.current_device() if device.index is None else device.index),
    }


def _smi(index: int) -> dict[str, str]:
    command = [
        "nvidia-smi",
        f"--id={index}",
        f"--query-gpu={','.join(SMI)}",
        "--format=csv,noheader",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return {}
    return (
        dict(zip(SMI, map(str.strip, done.stdout.splitlines()[0].split(","))))
        if done.stdout.strip()
        else {}
    )


def measured(
    name: str,
    value: float,
    unit: str,
    sense: str = ">=",
    goal: float | None = None,
    times: Times | None = None,
    **more: Any,
) -> Row:
    """A number with its unit; `times` are those that it was computed from."""
    sides = times.seconds if times else {}
    both = (
        {"times": times.medians(*sides), "minima": times.minima(*sides), "repeats": times.repeats}
        if times
        else {}
    )
    return Row(name, value, value, sense, goal, unit=unit, **both, **more)
