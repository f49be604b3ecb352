"""The cost of a training step of every method of a suite. All take turns in one process, so a busy
machine slows all.

    python -m tools.costs digits       writes data/results/digits.costs.json (half a minute)

`--set name=value` changes fields of the recipe, as in `cfm-lite compare`. `python -m tools.report`
tells the rows.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

from cfm_lite._internal.checks import check_choice, check_count
from cfm_lite._internal.places import check_folder, expanded
from cfm_lite.cli.arguments import parse_settings
from cfm_lite.data.batches import batches
from cfm_lite.data.datasets import DataSet, dataset
from cfm_lite.errors import CFMError, DataError
from cfm_lite.lab.jobs import jobs_of
from cfm_lite.lab.measures import Row
from cfm_lite.lab.store import read_rows, write_rows
from cfm_lite.lab.suites import SUITES, trials
from cfm_lite.models.classifier import one_thread
from cfm_lite.runs import facts, make_folder, pick_device
from cfm_lite.runs.recipe import Recipe, build_model, build_trainer, check_speed

RESULTS = Path(__file__).parent.parent / "data" / "results"
ROUNDS, WARM = 40, 3  # steps that are timed, and steps before them that are not
FIELDS = {
    **{"method": str, "batch": int, "rounds": int, "device": str, "processor": str},
    **dict.fromkeys(("value", "relative", "low", "high"), int | float),
}
SETTINGS = ("dataset", "model", "hidden_size", "batch", "rounds", "device")


def path_of(folder: Path, suite: str) -> Path:
    """Where the costs of a suite lie, in a folder of rows."""
    return folder / f"{suite}.costs.json"


def costs_of(folder: Path, suite: str) -> list[Row]:
    """The rows of a suite, one for each way of training; empty if they were not measured."""
    path = path_of(folder, suite)
    return read_rows(path, FIELDS) if path.exists() else []


def write_costs(folder: Path, suite: str, rows: Sequence[Row]) -> Path:
    """Write the costs of a suite; DataError if there are some of other settings, rounds or
    devices.
    """
    differ = [
        name
        for before, now in zip(costs_of(folder, suite), rows)
        for name in SETTINGS
        if before.get(name) != now.get(name)
    ]
    path = path_of(folder, suite)
    if differ:
        what = f"({', '.join(dict.fromkeys(differ))} differ)"
        raise DataError(
            f"{path} was made with other settings {what}; choose another --out, or remove it."
        )
    write_rows(path, rows)
    return path


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


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"steps of each ({ROUNDS})")
    parser.add_argument("--set", nargs="+", default=[], help="fields of the recipe: batch=64 ...")
    parser.add_argument("--device", default="auto", help="cpu, cuda, or what there is (auto)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="another folder")
    options = parser.parse_args(words)
    try:
        out = check_folder(expanded(options.out))  # before anything is timed
        device, changes = str(pick_device(options.device)), parse_settings(options.set)
        rows = training_costs(options.suite, device=device, rounds=options.rounds, changes=changes)
        path = write_costs(make_folder(out), options.suite, rows)
    except CFMError as error:
        parser.error(str(error))
    print(f"{'a training step of':<24}{'median':>11}   over FM's, and quartiles")
    for row in rows:
        took = f"{1000 * row['value']:8.1f} ms {row['relative']:6.2f}"
        print(f"{row['method']:<24}{took} [{row['low']:.2f}, {row['high']:.2f}]")
    print(path)


if __name__ == "__main__":
    main()
