"""The ablations of the small suites: one group for each question, every variant of it a name and
the fields that it changes.

The value that a suite's core already has is left out, and so is plain FM where the field means
nothing to it: `results` takes those rows from the core, whose seeds and samples are the same.
Nothing is tuned per variant.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cfm_lite.lab.arms import CONTROLS
from cfm_lite.lab.groups import Group, euler
from cfm_lite.lab.measures import Sampling
from cfm_lite.losses import VARIANTS

__all__ = ["ablations", "values"]

Variants = Mapping[str, Mapping[str, Any]]
FEW_MANY = euler(8, 50)
NFES = (1, 2, 4, 8, 16, 32, 64, 128)
SCALES = (1.0, 1.5, 2.0, 3.0, 4.0)
COUNTERPARTS = ("dispersive", "contrastive_independent", "contrastive_restricted")
AFFINE = ("fm_scaled", "fm_retargeted", "delta_fm", "delta_fm_debiased")


def values(name: str, several: Iterable[Any]) -> Variants:
    """A variant for each value of a recipe field."""
    return {
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}": {name: value}
        for value in several
    }


def _solvers() -> tuple[Sampling, ...]:
    """Every solver with every number of evaluations that it can take: Heun needs two a step, the
    SDE a last step without noise.
    """
    least = {"euler": 1, "heun": 2, "sde": 2}
    return tuple(
        Sampling(solver, nfe) for solver, low in least.items() for nfe in NFES if nfe >= low
    )


def _counterparts(width: int) -> Variants:
    """The four forms of the dispersive loss; the covariance one is a sum over pairs of features, so
    its weight is divided by `width`.
    """
    return {
        name: {"variant": name} | ({"spread": 0.5 / width} if name == "covariance" else {})
        for name in VARIANTS
    }


def ablations(
    *,
    seeds: int,
    vecor: Sequence[str],
    perturbations: Sequence[str],
    width: int,
    blocks: Sequence[int],
    steps: Sequence[int],
    pairs: tuple[str, ...],
) -> dict[str, Group]:
    """The ablations of a suite whose network has `width` features; `vecor` are its arms of VeCoR,
    the best one last, `pairs` those of two methods that are not in the core.

    `blocks` and `steps` are those that differ from the core's.
    """
    best, control = vecor[-1], CONTROLS[vecor[-1]]
    everyone = ("fm", "fm_scaled", "fm_retargeted", control, "delta_fm", best, "dispersive")
    table: dict[str, tuple[tuple[str, ...], Variants]] = {
        "perturbation": (tuple(vecor), values("perturb", perturbations)),
        "weight": ((*AFFINE, control, best), values("weight", (0.01, 0.1, 0.2, 0.35, 0.5))),
        "k": ((best,), values("k", (2, 4))),
        "counterparts": (COUNTERPARTS, _counterparts(width)),
        "tau": (("dispersive",), values("tau", (0.1, 0.25, 1.0, 2.0))),
        "block": (("dispersive",), values("block", blocks)),
        "spread": (("dispersive",), values("spread", (0.05, 0.25, 1.0, 2.0))),
        "size": (everyone, values("hidden_size", (width // 4, width // 2))),
        "length": (everyone, values("steps", steps)),
    }
    groups = {
        name: Group(arms, seeds, FEW_MANY, variants) for name, (arms, variants) in table.items()
    }
    guided = (*AFFINE[1:], best)
    if pairs:
        groups["pairs"] = Group(pairs, seeds, FEW_MANY)
    groups["guidance"] = Group(
        ("fm", *guided), seeds, tuple(Sampling(guidance=scale) for scale in SCALES)
    )
    groups["solver"] = Group(("fm", "fm_scaled", "delta_fm", best, "dispersive"), seeds, _solvers())
    return groups
