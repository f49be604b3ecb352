"""The cost of a training step. All arms of a core take turns in one process, so a busy machine
slows all.
"""

import time
from collections.abc import Callable, Mapping
from statistics import median, quantiles
from typing import Any

import torch

from cfm_lite._internal.checks import check_choice, check_count
from cfm_lite.data.batches import batches
from cfm_lite.data.datasets import DataSet, dataset
from cfm_lite.lab.jobs import jobs_of
from cfm_lite.lab.measures import Row
from cfm_lite.lab.suites import SUITES, trials
from cfm_lite.models.classifier import one_thread
from cfm_lite.runs import facts
from cfm_lite.runs.recipe import Recipe, build_model, build_trainer, check_speed

__all__ = ["training_costs"]

ROUNDS, WARM = 40, 3  # steps that are timed, and steps before them that are not


def training_costs(
    suite: str,
    *,
    device: str = "cpu",
    rounds: int = ROUNDS,
    changes: Mapping[str, Any] | None = None,
) -> list[Row]:
    """A row for each trained arm of the suite's core.

    `value` is the median seconds of a step. `relative` is the median of that time over plain FM's
    in the same round, with its quartiles `low` and `high`. A round is one step of each arm, and
    each round begins with another arm. On a CPU there is one thread. Raises ConfigError for an
    unknown suite or field, and for fewer than two rounds.
    """
    check_choice("suite", suite, SUITES)
    rounds = check_count("rounds", rounds, 2)
    jobs = jobs_of(trials(suite, "core", seeds=(0,), changes=changes or {}))
    for job in jobs:
        check_speed(job.training.precision, torch.device(device))
    # arms that share a training come after the one it is named for
    trainings = {job.trials[0].arm: job.training for job in jobs}
    names, data = list(trainings), dataset(SUITES[suite].data)
    with one_thread():
        steps = {name: _stepper(trainings[name], data, device, WARM + rounds) for name in names}
        for step in steps.values():
            for _ in range(WARM):
                step()
        spent: dict[str, list[float]] = {name: [] for name in names}
        for number in range(rounds):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                spent[name].append(steps[name]())
    told = facts(device)
    machine = {name: told[name] for name in ("torch", "processor", "cores", "device", "commit")}
    return [_row(name, trainings[name], spent[name], spent["fm"]) | machine for name in names]


def _stepper(recipe: Recipe, data: DataSet, device: str, steps: int) -> Callable[[], float]:
    """A function that takes one of `steps` training steps and returns its seconds."""
    source = batches(data.x1.to(device), data.y.to(device), size=recipe.batch, seed=recipe.seed)
    training = build_trainer(recipe, build_model(recipe, data).to(device)).run(source, steps)

    def step() -> float:
        began = time.perf_counter()
        float(next(training)["loss"])  # the host waits for the value
        return time.perf_counter() - began

    return step


def _row(name: str, recipe: Recipe, times: list[float], plain: list[float]) -> Row:
    low, relative, high = quantiles(
        [mine / fm for mine, fm in zip(times, plain)], n=4, method="inclusive"
    )
    return {
        "method": name,
        **{field: getattr(recipe, field) for field in ("dataset", "model", "hidden_size", "batch")},
        "metric": "step_seconds",
        "rounds": len(times),
        "value": median(times),
        "relative": relative,
        "low": low,
        "high": high,
    }
