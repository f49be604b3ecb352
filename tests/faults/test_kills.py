"""A run that is killed at any instant loses nothing that it had saved, and comes to the same end."""

import pytest

from tests.faults import counts
from tests.faults.killing import kill_at_random
from tests.faults.work import POINTS, data_of, naive_save

DATA = data_of(POINTS)


def test_twenty_kills_lose_nothing_and_change_nothing(tmp_path):
    tally = kill_at_random(POINTS, DATA, tmp_path, 20)
    assert (tally.lost, tally.different) == (0, 0)
    assert tally.inside >= 4
    assert tally.runs


def test_the_same_kills_catch_a_naive_save(tmp_path):
    """The harness can fail: a save that writes in place loses checkpoints under it."""
    trials = (
        tmp_path / f"{seed}" for seed in range(5)
    )  # more only where the first dozen all fell between two saves
    assert any(
        kill_at_random(POINTS, DATA, place, 12, save=naive_save, seed=seed).lost
        for seed, place in enumerate(trials)
    )


@pytest.mark.faults
def test_two_hundred_kills(tmp_path):
    tally = kill_at_random(POINTS, DATA, tmp_path / "ours", 200, seed=1)
    naive = kill_at_random(POINTS, DATA, tmp_path / "naive", 60, save=naive_save, seed=1)
    counts.write("kills", **vars(tally), naive_kills=naive.kills, naive_lost=naive.lost)
    assert (tally.lost, tally.different) == (0, 0)
    assert tally.inside >= 60
    assert naive.lost > 10


@pytest.fixture(autouse=True)
def _folders(tmp_path):
    for name in ("ours", "naive", *"01234"):
        (tmp_path / name).mkdir()
