"""Kill -9 at random instants, half of them aimed at the moments in which a checkpoint is written.

torch is imported once; each trial is a fork that goes on with the run where its newest checkpoint
is. A byte in shared memory says whether a save is under way, two numbers which step was saved last
and how long that took: an aimed kill falls at a random instant of a save as long as the last one,
so that it hits on a fast disk and on a slow one.
"""

import contextlib
import mmap
import os
import random
import signal
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from cfm_lite.data.datasets import DataSet
from cfm_lite.engine import checkpoint
from cfm_lite.errors import CheckpointError
from cfm_lite.runs.recipe import Recipe
from tests.faults.work import Save, digest, going_on, new_trainer, steps, unbroken
from tests.processes import forked


@dataclass
class Tally:
    """What became of the kills."""

    kills: int = 0
    inside: int = 0  # while a checkpoint was written
    lost: int = 0  # a saved step that could not be found again
    runs: int = 0  # that came to their end
    different: int = 0  # whose end or losses were not those of an unbroken run


class Shared:
    """What parent and child both see: whether a save is under way, the last step saved, and the
    seconds that its save took.
    """

    def __init__(self) -> None:
        self.map = mmap.mmap(-1, 24)

    @property
    def saving(self) -> bool:
        return self.map[0] == 1

    @property
    def saved(self) -> int:
        return struct.unpack_from("<q", self.map, 8)[0]

    @property
    def seconds(self) -> float:
        return struct.unpack_from("<d", self.map, 16)[0]

    def forget(self) -> None:
        """A new attempt begins: the save in which the last one was killed is over."""
        self.map[0] = 0

    def begin(self) -> None:
        self.map[0] = 1

    def end(self, step: int, seconds: float) -> None:
        struct.pack_into("<qd", self.map, 8, step, seconds)
        self.map[0] = 0


@contextlib.contextmanager
def watched(shared: Shared, save: Save) -> Iterator[None]:
    """Every save tells the shared memory that it begins, and that it has ended."""

    def saving(directory, step, *args, **settings):
        begun = time.monotonic()
        shared.begin()
        path = save(directory, step, *args, **settings)
        shared.end(step, time.monotonic() - begun)
        return path

    with mock.patch.object(checkpoint, "save", saving):
        yield


def child(
    recipe: Recipe, data: DataSet, folder: Path, shared: Shared, save: Save, every: int = 6
) -> None:
    """Go on with the run and save every few steps; a line per step stays in losses.txt."""
    with (
        watched(shared, save),
        open(folder / "losses.txt", "a", encoding="utf-8", buffering=1) as lines,
    ):
        trainer = going_on(recipe, data, folder)
        for step, loss in steps(trainer, recipe, data, recipe.steps):
            lines.write(f"\n{step} {loss};")
            if step % every == 0 or step == recipe.steps:
                trainer.save(folder, keep=2)


def kill_at_random(
    recipe: Recipe,
    data: DataSet,
    folder: Path,
    kills: int,
    save: Save = checkpoint.save,
    seed: int = 0,
) -> Tally:
    """Start the run, kill it, look, start it again; after every tenth kill it may come to its end
    and is held against an unbroken one.
    """
    curve, end = unbroken(recipe, data)
    chance, tally, number = random.Random(seed), Tally(), 0
    while tally.kills < kills:
        place, number = folder / f"run-{number}", number + 1
        place.mkdir()
        if _until_the_end(recipe, data, place, save, chance, tally, min(10, kills - tally.kills)):
            tally.runs += 1
            tally.different += (
                _differs(place, curve) or digest(new_trainer(recipe, data).resume(place)) != end
            )
    return tally


def _until_the_end(
    recipe: Recipe,
    data: DataSet,
    place: Path,
    save: Save,
    chance: random.Random,
    tally: Tally,
    kills: int,
) -> bool:
    """Kill one run so many times, then let it end; False where a saved step was lost, and the run
    given up.
    """
    shared = Shared()
    while True:
        shared.forget()
        started = forked(lambda: child(recipe, data, place, shared, save), place / "output.txt")
        if kills == 0:
            return os.waitstatus_to_exitcode(os.waitpid(started, 0)[1]) == 0
        inside = _kill(started, shared, chance, aim=chance.random() < 0.5)
        if inside is None:
            return True
        kills, tally.kills, tally.inside = kills - 1, tally.kills + 1, tally.inside + inside
        if not _kept(place, shared.saved):
            tally.lost += 1
            return False


def _kill(process: int, shared: Shared, chance: random.Random, aim: bool) -> bool | None:
    """Whether the kill fell into a save; None where the run was over before it."""
    wait, until = (0.0, time.monotonic() + 5) if aim else (chance.uniform(0, 0.3), 0.0)
    time.sleep(wait)
    while aim and not shared.saving and time.monotonic() < until and not _over(process):
        time.sleep(0.0001)
    if aim:
        time.sleep(chance.uniform(0, shared.seconds))
    os.kill(process, signal.SIGKILL)
    inside = shared.saving  # nothing changes it any more
    _, status = os.waitpid(process, 0)
    return None if os.waitstatus_to_exitcode(status) == 0 else bool(inside)


def _over(process: int) -> bool:
    """True for a process that has ended and was not waited for yet."""
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _kept(folder: Path, saved: int) -> bool:
    """Whether the newest valid checkpoint is at least as new as the last one that was reported as
    saved.
    """
    if saved == 0 and not any(folder.glob("step-*")):
        return True
    try:
        return int(checkpoint.load(checkpoint.latest(folder)).step) >= saved
    except CheckpointError:
        return False


def _differs(folder: Path, curve: dict[int, str]) -> bool:
    """Whether any whole line of any attempt shows another loss than the unbroken run, or a step is
    missing.
    """
    text = (folder / "losses.txt").read_text(encoding="utf-8")
    seen = dict.fromkeys(curve, False)
    for line in text.split("\n"):
        step, _, loss = line.partition(" ")
        if loss.endswith(";"):  # else it was cut off by a kill
            if curve[int(step)] != loss[:-1]:
                return True
            seen[int(step)] = True
    return not all(seen.values())
