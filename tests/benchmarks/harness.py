"""How every ratio here is measured:  ratio = median(time of one side) / median(time of the other), over rounds.

Both sides run in one process, with the same number of threads and the same precision. A round times every side once, each
round beginning with the next one, so that what the rest of the machine does falls on all of them. The ratio of the minima
stands beside it: on a busy machine it is the steadier of the two. The median decides whether a goal is met.
"""

import gc
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from types import ModuleType
from typing import Any

from cfm_lite.errors import ConfigError
from cfm_lite.lazy import optional

__all__ = ["Clock", "MissingPeer", "NotRun", "Row", "Times", "count", "faster", "peer", "takes"]

UNITS = (("s", 1.0), ("ms", 1e-3), ("us", 1e-6))


class MissingPeer(ConfigError):
    """A package to compare with is not installed."""


def peer(module: str) -> ModuleType:
    """A published package to compare with; MissingPeer, which becomes a line "not run", without it."""
    try:
        return optional(module, "bench")
    except ConfigError as error:
        raise MissingPeer(f"needs pip install cfm-lite[bench] ({str(error).partition(': pip')[0]})") from error


@dataclass(frozen=True)
class NotRun:
    """A row that could not be measured, and why."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name:<58} not run: {self.reason}"


@dataclass(frozen=True)
class Row:
    """One number and its goal; `floor` is the best that any program could reach here, measured beside it. Times in seconds."""

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
        if self.times:
            value += f" (minima {self.ratio_by_minima:.4g}{self.unit})"
        goal = "" if self.goal is None else f"goal {self.sense} {self.goal:g}"
        floor = "" if self.floor is None else f"floor {self.floor:.4g}"
        verdict = {True: "met", False: "MISSED", None: "-"}[self.met]
        times = ", ".join(f"{side} {_in_words(seconds)}" for side, seconds in self.times.items())
        return f"{self.name:<58} {value:<27} {goal:<14} {floor:<12} {verdict:<7} {times}".rstrip()


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
    """Times the sides of a comparison in `repeats` rounds (3 if quick), each side in blocks of about `block` seconds."""

    quick: bool = False

    def __call__(self, repeats: int = 9, block: float = 0.1, **sides: Callable[[], Any]) -> Times:
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


def faster(name: str, times: Times, ours: str, other: str, goal: float | None = None, floor: str | None = None, note: str = "") -> Row:
    """`ours` is `ratio` times as fast as `other`. `floor` names the side that does the least work possible."""
    return _compare(name, times, (other, ours), ">=", goal, (other, floor), note)


def takes(name: str, times: Times, ours: str, base: str, goal: float | None = None, floor: str | None = None, note: str = "") -> Row:
    """`ours` takes `ratio` times as long as `base`, which should be little."""
    return _compare(name, times, (ours, base), "<=", goal, (floor, base), note)


def _compare(
    name: str, times: Times, sides: tuple[str, str], sense: str, goal: float | None, best: tuple[str | None, str | None], note: str
) -> Row:
    middle, least = times.medians(*times.seconds), times.minima(*times.seconds)
    above, below = sides
    top, bottom = best
    floor = middle[top] / middle[bottom] if top and bottom else None
    shown = sides if sense == "<=" else sides[::-1]  # ours first
    return Row(
        name,
        middle[above] / middle[below],
        least[above] / least[below],
        sense,
        goal,
        floor,
        times=times.medians(*shown),
        minima=times.minima(*shown),
        repeats=times.repeats,
        note=note,
    )


def count(name: str, value: float, goal: float | None = None, floor: float | None = None, unit: str = "", note: str = "") -> Row:
    """A number that is counted, not timed, and should be small."""
    return Row(name, value, value, "<=", goal, floor, unit, note=note)


def _in_words(seconds: float) -> str:
    unit, size = next((pair for pair in UNITS if seconds >= pair[1]), UNITS[-1])
    return f"{seconds / size:.4g} {unit}"
