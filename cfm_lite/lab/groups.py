"""A group is one table of an experiment: some arms, for every variant of a recipe, sampled in some
ways, over some seeds.

A variant is a name and the recipe fields that it changes. Arms whose training does not read the
changed fields are trained once, so a base line costs nothing twice.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cfm_lite.data import cifar10
from cfm_lite.lab.measures import Sampling
from cfm_lite.runs.recipe import Recipe, recipe

__all__ = ["Group", "Suite", "euler"]

PLAIN: Mapping[str, Mapping[str, Any]] = {"": {}}


def euler(*nfes: int, samples: int = 1000) -> tuple[Sampling, ...]:
    """Euler sampling with each number of evaluations."""
    return tuple(Sampling("euler", nfe, 1.0, samples) for nfe in nfes)


@dataclass(frozen=True)
class Group:
    """A table of an experiment: `arms` for every variant {name: recipe changes}, sampled in some
    ways, over so many seeds.
    """

    arms: tuple[str, ...]
    seeds: int
    samplings: tuple[Sampling, ...]
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: PLAIN)
    recipe: str = ""  # another than the suite's
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Suite:
    """The groups of one data set, "core" first; `keep` saves trainings while they run, for they are
    long.

    `stand_in` is the data set that serves where the files of `dataset` are missing; rows have the
    name of the one that served. `miniature` are the changes of a sweep that is only to show that
    everything runs.
    """

    recipe: str
    dataset: str
    groups: Mapping[str, Group]
    changes: Mapping[str, Any] = field(default_factory=dict)
    keep: bool = False
    stand_in: str = ""
    miniature: Mapping[str, Any] = field(default_factory=lambda: {"steps": 40})

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms of the core."""
        return self.groups["core"].arms

    @property
    def data(self) -> str:
        """The name of the data set that serves on this machine."""
        serves = (
            self.stand_in
            and cifar10.available(self.stand_in)
            and not cifar10.available(self.dataset)
        )
        return self.stand_in if serves else self.dataset

    def base(self, group: str, changes: Mapping[str, Any]) -> Recipe:
        """The recipe of plain FM in `group`, with the user's `changes`."""
        mine = self.groups[group]
        own = {} if mine.recipe else self.changes
        served = {"dataset": self.data} if self.stand_in else {}
        return recipe(mine.recipe or self.recipe, **{**own, **served, **mine.changes, **changes})
