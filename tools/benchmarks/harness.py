"""How every ratio here is measured, over rounds.

    ratio = median(time of one side) / median(time of the other)

Both sides run in one process, with the same number of threads and the same precision. A round times
every side once, and each round begins with the next side. So other work on the machine slows all
sides alike. The ratio of the minima is reported too: on a busy machine it is the steadier one. The
median decides whether a goal is met.
"""

import gc
import io
import json
import math
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import torch

from cfm_lite._internal.lazy import optional
from cfm_lite.errors import ConfigError

__all__ = [
    "ROOT",
    "CannotRun",
    "Clock",
    "NotRun",
    "Row",
    "Times",
    "compiling",
    "count",
    "elsewhere",
    "faster",
    "peer",
    "takes",
    "unpacked",
]

ROOT = Path(__file__).parents[2]
UNITS = (("s", 1.0), ("ms", 1e-3), ("us", 1e-6))


class CannotRun(ConfigError):
    """What a comparison needs is missing. It is printed as a line "not run"."""


def peer(module: str) -> ModuleType:
    """A published package to compare with; CannotRun without it."""
    try:
        return optional(module, "bench")
    except ConfigError as error:
        raise CannotRun(
            f"needs pip install cfm-lite[bench] ({str(error).partition(': pip')[0]})"
        ) from error


def compiling(side: Callable[[], Any]) -> float:
    """The seconds of the first call of a compiled `side`; CannotRun where torch.compile does not
    work.
    """
    start = time.perf_counter()
    try:
        side()
    except Exception as error:
        # no C++ compiler, or one that torch cannot use: many causes, many types
        raise CannotRun(
            f"torch.compile does not work here ({str(error).strip().partition(chr(10))[0]})"
        ) from error
    return time.perf_counter() - start


def elsewhere(module: str, call: str) -> Any:
    """What `call` of this package's `module` gives in a new process with as many threads; it passes
    through JSON.
    """
    threads = f"torch.set_num_threads({torch.get_num_threads()})"
    program = f"import json, torch; {threads}; from tools.benchmarks import {module};"
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        f"{program} print(json.dumps({module}.{call}))",
    ]
    return json.loads(
        subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    )


def unpacked(commit: str, folder: Path) -> Path:
    """`folder` with the package as `commit` of this repository holds it; CannotRun without it."""
    command = ["git", "-C", str(ROOT), "archive", commit, "cfm_lite"]
    done = subprocess.run(command, capture_output=True)
    if done.returncode:
        raise CannotRun(f"needs the commit {commit} of this repository, with which it compares")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


@dataclass(frozen=True)
class NotRun:
    """What could not be measured, and why."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: not run: {self.reason}"


@dataclass(frozen=True)
class Row:
    """One number and its goal; `floor` is the best that any program could reach here, measured
    beside it. Times in seconds.
    """

    name: str
    ratio: float
    ratio_by_minima: float
    sense: str  # ">=": the goal is a lower bound; "<=": an upper one
    goal: float | None = None
    floor: float | None = None
    unit: str = "x"
    times: Mapping[str, float] = field(default_factory=dict)  # the median of each side
    minima: Mapping[str, float] = field(default_factory=dict)
    repeats: int = 1
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without a goal."""
        if self.goal is None:
            return None
        return self.ratio >= self.goal if self.sense == ">=" else self.ratio <= self.goal

    def __str__(self) -> str:
        value = f"{self.ratio:.4g}{self.unit}"
        if self.times and self.ratio_by_minima != self.ratio:
            value += f" (minima {self.ratio_by_minima:.4g}{self.unit})"
        goal = "" if self.goal is None else f"goal {self.sense} {self.goal:g}"
        floor = "" if self.floor is None else f"floor {self.floor:.4g}"
        verdict = {True: "met", False: "MISSED", None: "-"}[self.met]
        times = ", ".join(f"{side} {_in_words(seconds)}" for side, seconds in self.times.items())
        return f"{self.name:<60} {value:<25} {goal:<13} {floor:<11} {verdict:<6} {times}".rstrip()


@dataclass(frozen=True)
class Times:
    """Seconds per call of every side, round by round."""

    seconds: Mapping[str, list[float]]

    @property
    def repeats(self) -> int:
        """The number of rounds."""
        return min(map(len, self.seconds.values()))

    def medians(self, *sides: str) -> dict[str, float]:
        """The median of each side over the rounds."""
        return {side: median(self.seconds[side]) for side in sides}

    def minima(self, *sides: str) -> dict[str, float]:
        """The minimum of each side over the rounds."""
        return {side: min(self.seconds[side]) for side in sides}


@dataclass(frozen=True)
class Clock:
    """Times the sides of a comparison in `repeats` rounds (3 if quick), each side in blocks of
    about `block` seconds. `seconds` is for a benchmark that trains: how long each network does.
    """

    quick: bool = False
    seconds: float = 1200.0

    def __call__(
        self, sides: Mapping[str, Callable[[], Any]], repeats: int = 9, block: float = 0.1
    ) -> Times:
        calls = {name: _calls(side, block) for name, side in sides.items()}
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        names = list(sides)
        for i in range(3 if self.quick else repeats):
            first = i % len(names)
            for name in names[first:] + names[:first]:
                seconds[name].append(_per_call(sides[name], calls[name]))
        return Times(seconds)


def _calls(side: Callable[[], Any], block: float) -> int:
    """How many calls fill a block; the first call sets things up and does not count."""
    side()
    once = _per_call(side, 1)
    if once < block / 10:  # a short call alone is timed badly
        once = _per_call(side, 10)
    return max(1, math.ceil(block / once))


def _per_call(side: Callable[[], Any], calls: int) -> float:
    gc.collect()
    gc.disable()  # a collection belongs to no side
    try:
        start = time.perf_counter()
        for _ in range(calls):
            side()
        return (time.perf_counter() - start) / calls
    finally:
        gc.enable()


def faster(
    name: str,
    times: Times,
    ours: str,
    other: str,
    goal: float | None = None,
    floor: str | None = None,
    note: str = "",
) -> Row:
    """`ours` is `ratio` times as fast as `other`. `floor` names the side that does the least work
    possible.
    """
    middle, least = times.medians(*times.seconds), times.minima(*times.seconds)
    best = middle[other] / middle[floor] if floor else None
    return _timed(
        name,
        middle[other] / middle[ours],
        least[other] / least[ours],
        ">=",
        goal,
        best,
        times,
        (ours, other),
        note,
    )


def takes(
    name: str,
    times: Times,
    ours: str,
    base: str,
    goal: float | None = None,
    floor: str | None = None,
    note: str = "",
) -> Row:
    """`ours` takes `ratio` times as long as `base`, which should be little."""
    middle, least = times.medians(*times.seconds), times.minima(*times.seconds)
    best = middle[floor] / middle[base] if floor else None
    return _timed(
        name,
        middle[ours] / middle[base],
        least[ours] / least[base],
        "<=",
        goal,
        best,
        times,
        (ours, base),
        note,
    )


def _timed(
    name: str,
    ratio: float,
    by_minima: float,
    sense: str,
    goal: float | None,
    floor: float | None,
    times: Times,
    sides: tuple[str, str],
    note: str,
) -> Row:
    return Row(
        name,
        ratio,
        by_minima,
        sense,
        goal,
        floor,
        "x",
        times.medians(*sides),
        times.minima(*sides),
        times.repeats,
        note,
    )


def count(
    name: str,
    value: float,
    goal: float | None = None,
    floor: float | None = None,
    unit: str = "",
    note: str = "",
) -> Row:
    """A number that is not a ratio of times, and should be small."""
    return Row(name, value, value, "<=", goal, floor, unit, note=note)


def _in_words(seconds: float) -> str:
    unit, size = next((pair for pair in UNITS if seconds >= pair[1]), UNITS[-1])
    return f"{seconds / size:.4g} {unit}"
