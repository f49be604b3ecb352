"""What each suite compares: the arms of its core, and its ablations as named groups of variants of one recipe.

A variant is a name and the recipe fields that it changes; every arm of its group is sampled for every variant. Arms whose
training does not read the changed fields are trained once, so a base line costs nothing twice.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cfm_lite.checks import check_choice
from cfm_lite.experiments.arms import ARMS, EVALUATIONS
from cfm_lite.experiments.jobs import Trial
from cfm_lite.experiments.measures import Sampling
from cfm_lite.recipes import Recipe, recipe

__all__ = ["SUITES", "Group", "Suite", "euler", "trials"]

PLAIN: Mapping[str, Mapping[str, Any]] = {"": {}}


def euler(*nfes: int, samples: int = 1000) -> tuple[Sampling, ...]:
    """Euler sampling with each number of evaluations."""
    return tuple(Sampling("euler", nfe, 1.0, samples) for nfe in nfes)


@dataclass(frozen=True)
class Group:
    """A table of an experiment: `arms` for every variant {name: recipe changes}, sampled in some ways, over so many seeds."""

    arms: tuple[str, ...]
    seeds: int
    samplings: tuple[Sampling, ...]
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: PLAIN)
    recipe: str = ""  # another than the suite's
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Suite:
    """The groups of one data set, "core" first; `keep` saves trainings while they run, for they are long."""

    recipe: str
    dataset: str
    groups: Mapping[str, Group]
    changes: Mapping[str, Any] = field(default_factory=dict)
    keep: bool = False

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms of the core."""
        return self.groups["core"].arms

    def base(self, group: str, changes: Mapping[str, Any]) -> Recipe:
        """The recipe of plain FM in `group`, with the user's `changes`."""
        mine = self.groups[group]
        own = {} if mine.recipe else self.changes
        return recipe(mine.recipe or self.recipe, **{**own, **mine.changes, **changes})


_CONTROLS = ("fm", "fm_scaled", "fm_retargeted", "delta_fm", "delta_fm_debiased")
_STEPS = (2, 4, 8, 16, 50)
SUITES = {
    "toy": Suite("toy", "two_classes", {"core": Group((*_CONTROLS, "vecor", "vecor_debiased", "dispersive"), 5, euler(*_STEPS))}),
    "digits": Suite("digits", "digits", {"core": Group((*_CONTROLS, "vecor_latent", "dispersive"), 8, euler(*_STEPS))}),
    "mnist": Suite(
        "mnist",
        "mnist",
        {"core": Group((*_CONTROLS, "vecor_latent", "dispersive"), 3, (*euler(2, 4, 8, 16, samples=2000), *euler(50, samples=10_000)))},
        {"hidden_size": 128, "depth": 4, "num_heads": 4, "patch_size": 7, "batch": 64, "steps": 4000, "precision": "float32"},
        keep=True,
    ),
}


def trials(
    suite: str, group: str, *, seeds: Sequence[int], arms: Sequence[str] = (), changes: Mapping[str, Any], quick: bool = False
) -> Iterator[Trial]:
    """Every trial of a group, by variant, then seed, then arm; `arms` keeps only those, `quick` a small version of each.

    Raises ConfigError for an unknown suite, group or arm, with the nearest.
    """
    check_choice("suite", suite, SUITES)
    check_choice("group", group, SUITES[suite].groups)
    mine, base = SUITES[suite].groups[group], SUITES[suite].base(group, changes)
    for name in arms:
        check_choice("arm", name, mine.arms)
    ways = tuple(dict.fromkeys(_adapted(way, changes, quick) for way in mine.samplings))
    for variant, fields in mine.variants.items():
        for seed in seeds:
            for name in mine.arms:
                if not arms or name in arms:
                    arm = ARMS[name]
                    yield Trial(group, variant, name, base.changed(**{**arm.fields, **fields, "method": arm.trained, "seed": seed}), ways)


def _adapted(way: Sampling, changes: Mapping[str, Any], quick: bool) -> Sampling:
    """`way` with the solver and the guidance of `changes`, where they are given; at most 200 samples if `quick`."""
    solver = changes.get("solver", way.solver)
    calls = EVALUATIONS[solver]
    nfe = max(1, way.nfe // calls) * calls
    return Sampling(solver, nfe, changes.get("guidance", way.guidance), min(way.samples, 200) if quick else way.samples)
