"""The settings of a training, and their checks."""

import contextlib
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from cfm_lite._internal.checks import (
    check_callable,
    check_choice,
    check_count,
    check_flag,
    check_number,
    plain,
)
from cfm_lite.engine.checkpoint import check_storable
from cfm_lite.engine.parallel import World
from cfm_lite.engine.trainable import check_trainable
from cfm_lite.errors import ConfigError
from cfm_lite.objective import Objective

__all__ = ["PRECISIONS", "Settings", "autocast", "check_objective", "warmup"]

PRECISIONS = {"float32": None, "bf16": torch.bfloat16}
PARALLEL = ("ddp", "fsdp")


@dataclass(frozen=True)
class Settings:
    """The numbers of a `Trainer`, as Python's own; ConfigError for one outside its range.

    >>> Settings(1.0, 0.999, True, 0.0, 0, 1, "float32", 50, None, "ddp").decays
    {'ema': 0.999}
    """

    clip: float | None
    ema_decay: float
    ema_warmup: bool
    ema2_decay: float
    seed: int
    accumulate: int
    precision: str
    log_every: int
    runaway: float | None
    parallel: str
    schedule: Callable[[int], float] | None = None

    def __post_init__(self) -> None:
        check_flag(ema_warmup=self.ema_warmup)
        if self.schedule is not None:
            check_callable(schedule=self.schedule)
        check_choice("parallel", self.parallel, PARALLEL)
        check_choice("precision", self.precision, PRECISIONS)
        checked: dict[str, Any] = {
            "ema_warmup": plain(self.ema_warmup),
            "ema_decay": check_number("ema_decay", self.ema_decay, 0.0, 1.0, open_high=True),
            "ema2_decay": check_number("ema2_decay", self.ema2_decay, 0.0, 1.0, open_high=True),
            "seed": check_count("seed", self.seed, low=-(2**63)),
            "accumulate": check_count("accumulate", self.accumulate),
            "log_every": check_count("log_every", self.log_every),
        }
        if self.clip is not None:  # a negative bound would reverse the gradient
            checked["clip"] = check_number("clip", self.clip, 0.0, math.inf, open_low=True)
        if self.runaway is not None:
            checked["runaway"] = check_number("runaway", self.runaway, 1.0, math.inf)
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @property
    def decays(self) -> dict[str, float]:
        """The decay of each average, by its name in a checkpoint."""
        return {"ema": self.ema_decay} | ({"ema2": self.ema2_decay} if self.ema2_decay else {})

    def in_parts(self, world: Any) -> bool:
        """Whether each rank of `world` holds a part; ConfigError for what is no World."""
        if not isinstance(world, World):
            raise ConfigError(
                f"world is {world!r:.60}; it must be a World of engine.parallel, such as World(). "
                "For one process leave it out."
            )
        return self.parallel == "fsdp" and world.size > 1

    @property
    def decisive(self) -> dict[str, Any]:
        """Those that must be equal to resume a run; the others change only how it is computed."""
        names = ("seed", "ema_decay", "ema_warmup", "ema2_decay", "clip", "precision")
        return {name: getattr(self, name) for name in names}


def check_objective(objective: Any, parts: bool = False) -> None:
    """Raise ConfigError unless this is an Objective that can be trained, averaged and saved.

    With `parts` FSDP shards it over the ranks.

    >>> from cfm_lite import models, objective
    >>> check_objective(objective.fm(models.MLP(2)))  # nothing to say
    """
    if not isinstance(objective, Objective):
        raise ConfigError(
            f"objective has type {type(objective).__name__}; it must be an Objective, such as "
            "objective.fm(model)."
        )
    check_trainable(objective, parts)
    check_storable(objective.state_dict())


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Around a forward pass of this precision on `device`.

    >>> with autocast("bf16", torch.device("cpu")):
    ...     (torch.ones(1, 1) @ torch.ones(1, 1)).dtype
    torch.bfloat16
    """
    half = PRECISIONS[precision]
    return torch.autocast(device.type, dtype=half) if half else contextlib.nullcontext()


def warmup(steps: int) -> Callable[[int], float]:
    """A learning-rate factor that rises linearly to 1 over `steps` and stays there.

    >>> [warmup(4)(step) for step in range(5)]
    [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    return functools.partial(_risen, check_count("steps", steps, low=0))


def comparable(schedule: Callable[[int], float]) -> list[Any] | None:
    """A schedule as plain values, if it is a partial of numbers and texts; None for another one.

    The schedule of a recipe is another one: its run may grow, and its recipe is compared.

    >>> comparable(warmup(4)), comparable(lambda step: 1.0)
    (['_risen', [4], {}], None)
    """
    if not isinstance(schedule, functools.partial):
        return None
    args, given = [plain(value) for value in schedule.args], schedule.keywords
    named = {name: plain(value) for name, value in given.items()}
    if not all(isinstance(value, int | float | str) for value in (*args, *named.values())):
        return None
    return [getattr(schedule.func, "__qualname__", type(schedule.func).__name__), args, named]


def _risen(steps: int, step: int) -> float:
    return min(1.0, (step + 1) / steps) if steps else 1.0
