"""From samples to flat rows: what is measured of each arm, against held-out data and by the
judge.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cfm_lite._internal.checks import check_choice, check_count, check_number, plain
from cfm_lite.data.datasets import DataSet
from cfm_lite.errors import ConfigError
from cfm_lite.evaluate.judges import Judge
from cfm_lite.evaluate.measures import judge_of, measure, reference_rows
from cfm_lite.lab.arms import EVALUATIONS, Arm, conditions, draw_samples
from cfm_lite.lab.diagnostics import field_values, path_values
from cfm_lite.runs import Run
from cfm_lite.runs.recipe import Recipe
from cfm_lite.samplers import evaluations

__all__ = [
    "Row",
    "Sampling",
    "field_rows",
    "judge_of",
    "measure",
    "reference_rows",
    "row_base",
    "rows_of",
    "sample_rows",
]

Row = dict[str, Any]


@dataclass(frozen=True)
class Sampling:
    """How an arm is sampled: solver, network evaluations per sample, guidance scale, number of
    samples.

    Raises ConfigError for an unknown solver, evaluations that it cannot take, no samples, and a
    negative guidance.
    """

    solver: str = "euler"
    nfe: int = 50
    guidance: float = 1.0
    samples: int = 1000

    def __post_init__(self) -> None:
        check_choice("solver", self.solver, EVALUATIONS)
        for name in ("samples", "nfe"):
            object.__setattr__(self, name, check_count(name, getattr(self, name)))
        check_number("guidance", self.guidance, 0, float("inf"))
        object.__setattr__(self, "guidance", plain(self.guidance))
        if self.nfe % EVALUATIONS[self.solver] or (self.solver == "sde" and self.nfe < 2):
            raise ConfigError(
                f"nfe is {self.nfe}, which {self.solver} cannot take: it needs "
                f"{EVALUATIONS[self.solver]} calls a step."
            )

    @property
    def steps(self) -> int:
        """Steps of the solver."""
        return self.nfe // EVALUATIONS[self.solver]

    @property
    def rows(self) -> int:
        """The rows that the network computes for all samples."""
        return self.samples * evaluations(self.solver, self.steps, self.guidance).rows


def sample_rows(
    arm: Arm, run: Run, data: DataSet, judge: Judge | None, sampling: Sampling
) -> list[Row]:
    """Sample one arm in one way and measure it: flat rows. DivergenceError if samples are not
    finite.
    """
    y, guided, way = conditions(data, sampling.samples), _guided(run, sampling), sampling
    seed = guided.recipe.seed
    samples = draw_samples(arm, guided, data, y, way.steps, seed, solver=way.solver)
    values = measure(samples, y, data, judge)
    values |= path_values(arm, guided, data, samples, y, way.steps, way.solver)
    return _rows(arm, guided.recipe, way, values)


def field_rows(arm: Arm, run: Run, data: DataSet, sampling: Sampling) -> list[Row]:
    """What is measured of an arm without samples, as rows beside those of `sampling`."""
    guided = _guided(run, sampling)
    return _rows(arm, guided.recipe, sampling, field_values(arm, guided, data))


def _guided(run: Run, way: Sampling) -> Run:
    return Run(run.recipe.changed(guidance=way.guidance), run.model)


def _rows(arm: Arm, recipe: Recipe, way: Sampling, values: Mapping[str, float]) -> list[Row]:
    base = row_base(arm.method, recipe, way.samples, way.steps, way.solver)
    return [{**base, "metric": name, "value": value} for name, value in values.items()]


def rows_of(
    arm: Arm, run: Run, data: DataSet, judge: Judge | None, *, nfes: Sequence[int], n: int
) -> list[Row]:
    """Flat rows of one arm, with the recipe's solver and each number of evaluations in `nfes`."""
    r, calls = run.recipe, EVALUATIONS[run.recipe.solver]
    ways = [Sampling(r.solver, max(1, nfe // calls) * calls, r.guidance, n) for nfe in nfes]
    return [row for way in ways for row in sample_rows(arm, run, data, judge, way)]


def row_base(method: str, recipe: Recipe, n: int, steps: int, solver: str | None = None) -> Row:
    """The fields of a row beside metric and value. `steps` of the solver become evaluations
    (nfe).
    """
    solver = solver or recipe.solver
    return {
        "method": method,
        "dataset": recipe.dataset,
        "seed": recipe.seed,
        "steps": recipe.steps,
        "nfe": evaluations(solver, steps).nfe,
        "sampler": solver,
        "guidance": recipe.guidance,
        "samples": n,
    }
