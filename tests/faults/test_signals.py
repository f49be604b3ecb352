"""A request to stop, at any instant of a run: it saves the step that it has done, says so by its
exit code, and goes on from there.

Each trial is a fork that goes on with the run until SIGTERM or SIGINT, sent at a random instant
after its first step, ends it.
"""

import json
import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from cfm_lite import runs
from cfm_lite.data.datasets import DataSet
from cfm_lite.engine import checkpoint
from cfm_lite.errors import ConfigError
from cfm_lite.runs.recipe import Recipe
from tests.faults import counts
from tests.faults.work import POINTS, data_of
from tests.logs import numbers
from tests.networks import same_parameters
from tests.processes import forked

DATA = data_of(POINTS)
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}


@dataclass
class Tally:
    """What became of the requests to stop."""

    requests: int = 0
    lost: int = 0  # the newest checkpoint was not the last step done
    codes: int = 0  # another exit code than that of the signal
    late: int = 0  # ended more than 5 s after the request
    runs: int = 0  # that came to their end
    different: int = 0  # whose parameters or log were not those of an unbroken run


def go(recipe: Recipe, data: DataSet, folder: Path) -> runs.Run:
    resume = (folder / "checkpoints").exists()
    return runs.train(
        recipe, data, out=folder, resume=resume, progress=False, log_every=1, save_every=1000
    )


def child(recipe: Recipe, data: DataSet, folder: Path) -> int:
    try:
        go(recipe, data, folder)
    except KeyboardInterrupt:
        return 130  # what the command line makes of it; SIGTERM is a SystemExit of its own
    return 0


def steps_done(folder: Path) -> int:
    """The last whole line of the log, or 0."""
    path = folder / "log.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def stop_at_random(
    recipe: Recipe, data: DataSet, folder: Path, requests: int, seed: int = 0
) -> Tally:
    """Start the run and ask it to stop, again and again; after every fifth request it may come to
    its end.
    """
    chance, tally, number = random.Random(seed), Tally(), 0
    whole = go(recipe, data, folder / "whole")
    log = numbers(folder / "whole")
    while tally.requests < requests:
        place, number = folder / f"run-{number}", number + 1
        for _ in range(min(5, requests - tally.requests)):
            if not _asked(recipe, data, place, chance, tally):
                break
        end = go(recipe, data, place)
        tally.runs += 1
        tally.different += not same_parameters(end.model, whole.model) or numbers(place) != log
    return tally


def _asked(recipe: Recipe, data: DataSet, place: Path, chance: random.Random, tally: Tally) -> bool:
    """One attempt that is asked to stop; False where it was over before."""
    before, number = steps_done(place), chance.choice(list(CODES))
    started = forked(lambda: child(recipe, data, place), place.with_suffix(".txt"))
    until = time.monotonic() + 90
    while steps_done(place) <= before and time.monotonic() < until:
        time.sleep(0.001)
    time.sleep(chance.uniform(0, 0.05))
    os.kill(started, number)
    asked = time.monotonic()
    code = os.waitstatus_to_exitcode(os.waitpid(started, 0)[1])
    if code == 0:
        return False
    tally.requests += 1
    tally.late += time.monotonic() - asked > 5
    tally.codes += code != CODES[number]
    tally.lost += checkpoint.load(checkpoint.latest(place / "checkpoints")).step != steps_done(
        place
    )
    return True


def held(tally: Tally) -> None:
    assert (tally.lost, tally.codes, tally.late, tally.different) == (0, 0, 0, 0), tally
    assert tally.runs


def test_six_requests_to_stop_lose_no_step(tmp_path):
    held(stop_at_random(POINTS, DATA, tmp_path, 6))


@pytest.mark.faults
def test_fifty_requests_to_stop(tmp_path):
    tally = stop_at_random(POINTS.changed(steps=120), DATA, tmp_path, 50, seed=1)
    counts.write("signals", **vars(tally))
    held(tally)


@pytest.mark.parametrize("number", CODES)
def test_a_second_request_ends_a_run_that_is_still_saving(tmp_path, monkeypatch, number):
    """A save that never ends stands for a hanging disk: the first request waits for it, the second
    does not.
    """
    saving = tmp_path / "saving"

    def hang(*args, **settings):
        saving.touch()
        time.sleep(60)

    monkeypatch.setattr(checkpoint, "save", hang)
    started = forked(
        lambda: child(POINTS.changed(steps=100_000), DATA, tmp_path / "run"),
        tmp_path / "output.txt",
    )
    for wait in (lambda: steps_done(tmp_path / "run"), saving.exists):
        until = time.monotonic() + 90
        while not wait():
            assert time.monotonic() < until
            time.sleep(0.005)
        os.kill(started, number)
    asked = time.monotonic()
    assert os.waitstatus_to_exitcode(os.waitpid(started, 0)[1]) == CODES[number]
    assert time.monotonic() - asked < 5


@pytest.mark.parametrize("resume", [False, True, "auto"])
def test_a_folder_in_which_this_process_trains_already_is_refused(tmp_path, resume):
    """As two cells of a notebook or two threads do: the lock of a process would let both in."""
    refused = []

    def begin_another(line):
        with pytest.raises(ConfigError, match="is written to by another run of this process"):
            runs.train(POINTS, DATA, out=tmp_path / "run", resume=resume, progress=False)
        refused.append(line["step"])

    for _ in range(2):  # the second finds the folder free again
        refused.clear()
        steps = POINTS.steps + 100 * (tmp_path / "run").exists()
        chosen = POINTS.changed(steps=steps)
        runs.train(
            chosen, DATA, out=tmp_path / "run", resume="auto", progress=False, listen=begin_another
        )
        assert refused


def test_a_folder_in_which_another_process_trains_is_refused(tmp_path):
    """Two runs in one folder would take each other's checkpoints away; the lock of one that was
    killed holds nobody up.
    """
    started = forked(
        lambda: child(POINTS.changed(steps=100_000), DATA, tmp_path / "run"),
        tmp_path / "output.txt",
    )
    until = time.monotonic() + 90
    while not steps_done(tmp_path / "run"):
        assert time.monotonic() < until
        time.sleep(0.005)
    config = (tmp_path / "run" / "config.json").read_bytes()
    for resume in (False, True):
        with pytest.raises(ConfigError, match=f"is written to by process {started} on "):
            runs.train(POINTS, DATA, out=tmp_path / "run", resume=resume, progress=False)
    assert (tmp_path / "run" / "config.json").read_bytes() == config
    os.kill(started, signal.SIGKILL)
    os.waitpid(started, 0)
    assert runs.train(POINTS, DATA, out=tmp_path / "run", progress=False).step == POINTS.steps
