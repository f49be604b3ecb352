"""The unit of work of a sweep: one training, and every trial that is sampled from it.

A `Trial` is an arm of a variant with one seed. Its key is a hash of all that its rows depend on, so
a finished trial is recognised in a longer sweep or in another group. Trials with equal trainings
share a `Job`.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch

from cfm_lite._internal.files import hash_of_json
from cfm_lite.data.datasets import DataSet, dataset
from cfm_lite.errors import DivergenceError
from cfm_lite.lab.arms import ARMS, trained_recipe
from cfm_lite.lab.measures import Row, Sampling, field_rows, judge_of, row_base, sample_rows
from cfm_lite.runs import Run, train, write_json
from cfm_lite.runs.reads import BOOST, OF_SAMPLES
from cfm_lite.runs.recipe import Recipe, build_model

__all__ = ["Job", "Trial", "estimate", "jobs_of", "key_of", "run_job"]

VERSION = 1  # raised when the same settings would give other rows
STEP_COST = 3.0  # forward, backward and update of one row, in forward passes


def key_of(value: Any) -> str:
    """The first 12 hex digits of the SHA-256 of `value` as JSON."""
    return hash_of_json(value)[:12]


def _told(recipe: Recipe) -> dict[str, Any]:
    """The fields of a recipe that differ from their default. So a new field changes no old key."""
    return {
        f.name: getattr(recipe, f.name)
        for f in dataclasses.fields(recipe)
        if getattr(recipe, f.name) != f.default
    }


@dataclass(frozen=True)
class Trial:
    """One arm of one variant with one seed: its recipe, and how it is sampled."""

    group: str
    variant: str
    arm: str
    recipe: Recipe
    samplings: tuple[Sampling, ...]

    @cached_property
    def training(self) -> Recipe:
        """The recipe of its training. It is equal for all trials that share a training."""
        return trained_recipe(self.recipe)

    @cached_property
    def key(self) -> str:
        """The name of its rows. Fields that only a change of the velocity reads count only if there
        is one.
        """
        ways = [dataclasses.asdict(way) for way in self.samplings]
        if ARMS[self.arm].changes:
            training = {name: getattr(self.training, name) for name in OF_SAMPLES}
            read = self.recipe.changed(**training)
        else:
            read = self.training.changed(**{name: getattr(self.recipe, name) for name in BOOST})
        return key_of([VERSION, self.arm, _told(read), _told(self.training), ways])


@dataclass(frozen=True)
class Job:
    """A training and the trials that are sampled from it, each key once."""

    training: Recipe
    trials: tuple[Trial, ...]

    @property
    def key(self) -> str:
        """The name of its training."""
        return key_of([VERSION, _told(self.training)])

    @property
    def label(self) -> str:
        """The first arm, seed and variant, for a list or an error. Arms may share a method."""
        variants = dict.fromkeys(trial.variant for trial in self.trials if trial.variant)
        return " ".join([self.trials[0].arm, f"seed {self.training.seed}", *variants])


def jobs_of(trials: Iterable[Trial]) -> list[Job]:
    """The jobs that give `trials`, in the order in which their trainings first appear."""
    table: dict[str, tuple[Recipe, dict[str, Trial]]] = {}
    for trial in trials:
        training = trial.training
        table.setdefault(key_of(_told(training)), (training, {}))[1].setdefault(trial.key, trial)
    return [Job(training, tuple(mine.values())) for training, mine in table.values()]


@cache
def _data(name: str) -> DataSet:
    return dataset(name)


@cache
def _row_seconds(recipe: Recipe, device: str) -> float:
    data = _data(recipe.dataset)
    model = build_model(recipe, data).to(device)
    x = torch.zeros(128, *data.shape, device=device)
    y = torch.zeros(128, *data.y.shape[1:], dtype=torch.long, device=device)
    t = torch.full((128,), 0.5, device=device)
    with torch.no_grad():
        float(model(x, t, y).sum())
        began = time.perf_counter()
        float(model(x, t, y).sum())  # the host waits for the value
    return (time.perf_counter() - began) / 128


def estimate(job: Job, device: str = "cpu") -> float:
    """About how many seconds a job takes, from one timed forward pass. It serves as a weight for
    the bar.
    """
    sizes = ("hidden_size", "depth", "num_heads", "patch_size", "levels")
    own = {name: getattr(job.training, name) for name in ("dataset", "model", *sizes)}
    return _row_seconds(Recipe(**own), device) * estimate_rows(job)


def run_job(
    job: Job,
    parts: Path,
    device: str,
    *,
    keep: str = "",
    report: Callable[[float], None] = lambda share: None,
) -> None:
    """Train, sample and measure. Writes PARTS/KEY.json for each finished trial.

    With `keep`, the name of a suite, the training has a folder beside that suite's parts, and a
    stopped one resumes from it. `report` is called with the share that is done, in [0, 1].
    Divergence, of the training or of samples, is a result: a row of metric "diverged" describes it.
    """
    recipe = job.training
    data, judge = _data(recipe.dataset), judge_of(recipe.dataset)
    training = min(0.9, _rows_of_training(recipe) / max(1, estimate_rows(job)))
    try:
        run = train(
            recipe,
            data,
            device=device,
            out=parts.with_name(f"{keep}.parts") / f"run-{job.key}" if keep else None,
            resume="auto",
            save_every=500,
            progress=False,
            listen=lambda line: report(training * line["step"] / recipe.steps),
        )
    except DivergenceError as error:
        for trial in job.trials:
            _write(parts, trial, [_diverged(trial, error)])
        return
    for i, trial in enumerate(job.trials):
        _write(parts, trial, _rows(trial, Run(trial.recipe, run.model), data, judge))
        report(training + (1 - training) * (i + 1) / len(job.trials))


def estimate_rows(job: Job) -> float:
    """All rows that a job sends through its network, in forward passes."""
    drawn = sum(way.rows for trial in job.trials for way in trial.samplings)
    return _rows_of_training(job.training) + drawn


def _rows_of_training(recipe: Recipe) -> float:
    return STEP_COST * recipe.steps * recipe.batch


def _rows(trial: Trial, run: Run, data: DataSet, judge: Any) -> list[Row]:
    rows: list[Row] = []
    try:
        for way in trial.samplings:
            rows += sample_rows(ARMS[trial.arm], run, data, judge, way)
        rows += field_rows(ARMS[trial.arm], run, data, trial.samplings[-1])
    except DivergenceError as error:
        rows.append(_diverged(trial, error))
    return rows


def _diverged(trial: Trial, error: DivergenceError) -> Row:
    way = trial.samplings[-1]
    recipe = trial.recipe.changed(guidance=way.guidance)
    return {
        **row_base(trial.arm, recipe, way.samples, way.steps, way.solver),
        "metric": "diverged",
        "value": None,
        "reason": " ".join(str(error).split()),
    }


def _write(parts: Path, trial: Trial, rows: list[Row]) -> None:
    write_json(parts / f"{trial.key}.json", [{**row, "key": trial.key} for row in rows])
