"""Run the unfinished jobs of a suite: in parallel on a CPU, one after the other on a GPU.

A sweep can be stopped at any time and started again; finished jobs are kept. Ctrl-C and SIGTERM end
the work within seconds, with the exit codes 130 and 143. Each process uses one thread, so the
number of workers changes no number.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from tqdm.auto import tqdm

from cfm_lite._internal.checks import check_choice, check_count, check_device
from cfm_lite.data.shared import owned
from cfm_lite.errors import CFMError, ConfigError
from cfm_lite.lab.jobs import Job, Trial, estimate, jobs_of
from cfm_lite.lab.measures import Row, judge_of
from cfm_lite.lab.store import Store
from cfm_lite.lab.suites import SUITES, trials
from cfm_lite.lab.workers import Outcome, in_process, in_workers
from cfm_lite.runs import Terminated, facts, make_folder
from cfm_lite.runs.recipe import check_speed

__all__ = ["Plan", "compare", "plan"]


@dataclass(frozen=True)
class Plan:
    """All trials that were asked for, and the jobs that are left to do."""

    store: Store
    trials: tuple[Trial, ...]
    jobs: tuple[Job, ...]
    settings: Mapping[str, Any]

    def seconds(self, device: str = "cpu") -> list[float]:
        """About how long each job takes; see `estimate`."""
        return [estimate(job, device) for job in self.jobs]


def plan(
    suite: str,
    *,
    out: str | Path,
    groups: Sequence[str] = ("core",),
    seeds: Sequence[int] | None = None,
    first_seed: int = 0,
    arms: Sequence[str] = (),
    changes: Mapping[str, Any] | None = None,
    quick: bool = False,
    device: str = "cpu",
) -> Plan:
    """What a sweep of `groups` would do.

    `seeds` defaults to each group's own number of seeds, from `first_seed` on. Raises ConfigError
    for an unknown name, seed or device, and DataError if files in `out` were made with other
    settings.
    """
    check_choice("suite", suite, SUITES)
    check_device(device)
    check_count("first_seed", first_seed, low=0)
    if seeds is not None and not isinstance(seeds, Iterable):
        raise ConfigError(
            f"seeds is {seeds!r:.60}; it must be whole numbers, such as range({seeds!r:.20})."
        )
    seeds = seeds if seeds is None else [check_count("seeds", seed, low=0) for seed in seeds]
    known = SUITES[suite].groups
    changes = {**(SUITES[suite].miniature if quick else {}), **(changes or {})}
    wanted: list[Trial] = []
    for group in groups:
        check_choice("group", group, known)
        own = range(first_seed, first_seed + known[group].seeds) if seeds is None else seeds
        wanted += trials(suite, group, seeds=own, arms=arms, changes=changes, quick=quick)
    for name in arms:
        check_choice(
            "arm", name, dict.fromkeys(arm for group in groups for arm in known[group].arms)
        )
    store = Store(out, suite)
    settings = _settings(suite, groups, changes, wanted, device)
    store.check(settings)
    done = store.finished()
    jobs = [
        Job(job.training, tuple(t for t in job.trials if t.key not in done))
        for job in jobs_of(wanted)
    ]
    return Plan(store, tuple(wanted), tuple(job for job in jobs if job.trials), settings)


def _settings(
    suite: str,
    groups: Sequence[str],
    changes: Mapping[str, Any],
    wanted: Sequence[Trial],
    device: str,
) -> dict[str, Any]:
    """{group: the settings that all its rows share}. Rows with other settings are not mixed in."""
    judge = judge_of(SUITES[suite].data)
    shared = {"judge": judge.fingerprint if judge else None, "device": torch.device(device).type}
    ways = {trial.group: [vars(way) for way in trial.samplings] for trial in wanted}
    recipes = {group: SUITES[suite].base(group, changes).as_dict() for group in groups}
    return {
        group: {**shared, "recipe": recipes[group], "samplings": ways.get(group, [])}
        for group in groups
    }


def compare(
    suite: str,
    *,
    out: str | Path,
    workers: int = 1,
    device: str = "cpu",
    progress: bool = True,
    command: str = "",
    quick: bool = False,
    **chosen: Any,
) -> dict[str, list[Row]]:
    """Run what is left of a suite's groups and return {group: rows}. `chosen` are arguments of
    `plan`.

    With one worker the work is done in this process. Divergence is a result, a row. After any other
    error the remaining jobs are still done, and then CFMError lists the failed ones. Raises
    ConfigError if another process runs the same suite there.
    """
    check_count("workers", workers)
    todo = plan(suite, out=out, quick=quick, device=device, **chosen)
    for job in todo.jobs:
        check_speed(job.training.precision, torch.device(device))
    with owned(make_folder(out), f".{suite}.lock"):
        mark = {"miniature": True} if quick else {}
        todo.store.assemble(todo.trials, mark)
        began, failed = time.perf_counter(), []
        try:
            with _terminable(), _bar(todo, device, progress) as tick:
                for outcome in _outcomes(todo, suite, device, workers, tick):
                    failed += [outcome] if outcome.error else []
        finally:
            todo.store.assemble(todo.trials, mark)
            todo.store.write_info(
                _info(todo, suite, command, quick, device, time.perf_counter() - began)
            )
    if failed:
        lines = "; ".join(f"{outcome.label}: {outcome.error}" for outcome in failed)
        raise CFMError(
            f"{len(failed)} of {len(todo.jobs)} jobs failed, the others are done: {lines}. The "
            "same command tries them again."
        )
    groups = dict.fromkeys(trial.group for trial in todo.trials)
    return {group: todo.store.rows(group) for group in groups}


def _outcomes(todo: Plan, suite: str, device: str, workers: int, tick: Any) -> Iterator[Outcome]:
    alone = workers == 1 or len(todo.jobs) < 2 or torch.device(device).type != "cpu"
    run = in_process if alone else in_workers
    return run(todo.jobs, todo.store.parts, device, SUITES[suite].keep, workers, tick)


@contextlib.contextmanager
def _bar(todo: Plan, device: str, progress: bool) -> Iterator[Any]:
    """A function (job number, share done) that moves one bar over all jobs, weighted by their
    estimates.
    """
    seconds = todo.seconds(device) if progress else [1.0] * len(todo.jobs)
    shares = [0.0] * len(todo.jobs)
    form = "{desc} {percentage:3.0f}%|{bar}| {elapsed} gone, {remaining} left{postfix}"
    with tqdm(
        total=sum(seconds),
        disable=not progress or not todo.jobs,
        bar_format=form,
        desc=todo.store.suite,
        smoothing=0.05,
    ) as bar:

        def tick(number: int, share: float) -> None:
            bar.set_postfix_str(
                f"{sum(s >= 1 for s in shares)} of {len(shares)} jobs", refresh=False
            )
            bar.update((share - shares[number]) * seconds[number])
            shares[number] = share

        yield tick


def _info(
    todo: Plan, suite: str, command: str, quick: bool, device: str, seconds: float
) -> dict[str, Any]:
    """SUITE.info.json: the settings of every group, the judge, and machine, commit and time of each
    sitting.
    """
    before, judge = todo.store.info(), judge_of(SUITES[suite].data)
    groups = {**before.get("groups", {}), **todo.settings}
    sitting = {
        "command": command,
        "jobs": len(todo.jobs),
        "seconds": round(seconds, 1),
        "facts": facts(device),
    }
    return {
        "suite": suite,
        "quick": quick,
        "recipe": groups.get("core", next(iter(groups.values())))["recipe"] if groups else {},
        "judge": judge
        and {name: getattr(judge, name) for name in ("dataset", "accuracy", "fingerprint")},
        "groups": groups,
        "sittings": [*before.get("sittings", []), *([sitting] if todo.jobs else [])],
        "facts": facts(device),
    }


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM raises here as Ctrl-C does, so finished trials are saved before the process ends."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
