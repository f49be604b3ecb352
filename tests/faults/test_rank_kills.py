"""One of two ranks is killed at any instant: the other ends soon and says why, nothing saved is
lost, and the run comes to the same end.
"""

import random
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from cfm_lite import runs
from cfm_lite.data.batches import batches
from cfm_lite.engine import checkpoint
from cfm_lite.engine.parallel import joined
from cfm_lite.errors import CheckpointError
from cfm_lite.runs.recipe import build_model, build_trainer
from tests.faults import counts
from tests.faults.killing import Shared, watched
from tests.faults.work import POINTS, data_of
from tests.logs import numbers
from tests.networks import same_parameters
from tests.processes import Ranks, ranks

DATA = data_of(POINTS)  # shards of 16 of a batch of 32: one for each rank
TIMEOUT = 5.0
REAL = checkpoint.save


@dataclass
class Tally:
    """What became of the kills."""

    kills: int = 0
    inside: int = 0  # while a checkpoint was written
    hung: int = 0  # the other rank ended later than its time-out allows
    unclear: int = 0  # it did not say that it lost the others, and where to go on from
    lost: int = 0  # a saved step that could not be found again
    runs: int = 0  # that came to their end
    different: int = 0  # whose parameters or log were not those of an unbroken run


def start(folder: Path, shared: Shared, outputs: Path) -> Ranks:
    """Both ranks of the run, from its newest checkpoint on; each takes its half of every batch."""
    shared.forget()
    resume = any((folder / "checkpoints").glob("step-*"))
    if not resume and (folder / "checkpoints").exists():
        (folder / "checkpoints").rmdir()  # killed before the first save was whole

    def work() -> None:
        with joined() as world, watched(shared, REAL):

            def source(step):
                for x, y in batches(DATA.x1, DATA.y, size=32, seed=POINTS.seed, start=step):
                    yield x[16 * world.rank :][:16], y[16 * world.rank :][:16]

            trainer = build_trainer(POINTS, build_model(POINTS, DATA), world=world)
            settings = {"save_every": 4, "log_every": 1, "progress": False}
            runs.train(
                POINTS, DATA, out=folder, resume=resume, trainer=trainer, source=source, **settings
            )

    return ranks([work] * 2, outputs, timeout=TIMEOUT)


def kill_ranks(folder: Path, kills: int, seed: int = 0) -> Tally:
    """Start both, kill one, look, start both again; after every eighth kill the run may come to its
    end.
    """
    chance, tally, number = random.Random(seed), Tally(), 0
    outputs = folder / "outputs"
    outputs.mkdir()
    done = start(folder / "whole", Shared(), outputs)
    assert done.wait() == [0, 0], "\n".join(done.texts())
    log, whole = numbers(folder / "whole"), runs.Run.open(folder / "whole").model
    while tally.kills < kills:
        place, number, shared = folder / f"run-{number}", number + 1, Shared()
        for _ in range(min(8, kills - tally.kills)):
            if _over(place) or not _kill(
                start(place, shared, outputs), place, shared, chance, tally
            ):
                break
        ended = start(place, shared, outputs)
        assert ended.wait() == [0, 0], "\n".join(ended.texts())
        tally.runs += 1
        model = runs.Run.open(place).model
        tally.different += not same_parameters(model, whole) or numbers(place) != log
    return tally


def _kill(started: Ranks, place: Path, shared: Shared, chance: random.Random, tally: Tally) -> bool:
    """Kill one rank; False where the run was over before."""
    victim, saved, aim, until = (
        chance.randrange(2),
        shared.saved,
        chance.random() < 0.5,
        time.monotonic() + 30,
    )
    while (
        not (shared.saving if aim else shared.saved > saved)
        and not _over(place)
        and time.monotonic() < until
    ):
        time.sleep(0.0005)
    time.sleep(chance.uniform(0, shared.seconds if aim else 0.05))
    started.kill(victim)
    killed, inside = time.monotonic(), shared.saving
    codes = started.wait(60)
    if codes[victim] == 0:
        return False
    tally.kills += 1
    tally.inside += inside
    if codes[1 - victim] == 0:  # it had nothing left to ask of the other
        return False
    text = started.texts()[1 - victim]
    tally.hung += time.monotonic() - killed > TIMEOUT + 10
    clear = "lost the others" in text and (shared.saved == 0 or "--resume starts from" in text)
    tally.unclear += not clear and "cannot join the others" not in text
    tally.lost += not _kept(place, shared.saved)
    return True


def _over(place: Path) -> bool:
    return (place / "checkpoints" / f"step-{POINTS.steps:08d}").is_dir()


def _kept(place: Path, saved: int) -> bool:
    try:
        return saved == 0 or checkpoint.load(checkpoint.latest(place / "checkpoints")).step >= saved
    except CheckpointError:
        return False


def held(tally: Tally) -> None:
    assert (tally.hung, tally.unclear, tally.lost, tally.different) == (0, 0, 0, 0), tally
    assert tally.runs


@pytest.mark.timeout(120)
def test_three_killed_ranks(tmp_path):
    held(kill_ranks(tmp_path, 3))


@pytest.mark.faults
def test_forty_killed_ranks(tmp_path):
    tally = kill_ranks(tmp_path, 40, seed=1)
    counts.write("rank_kills", **vars(tally))
    held(tally)
    assert tally.inside >= 10
