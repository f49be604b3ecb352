"""What two processes owe each other, without a training run: means, stop requests, agreement, and
their own shards.
"""

import os
import signal
import time

import pytest
import torch

from cfm_lite import objective
from cfm_lite.engine.parallel import ALONE, World, joined
from cfm_lite.errors import DistributedError
from cfm_lite.training import Trainer
from tests.networks import Tiny
from tests.processes import eventually, ranks


def test_rows_without_a_negative_are_summed_over_the_ranks_and_dropout_is_saved_for_each(tmp_path):
    x1, y = torch.randn(16, 2, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 3

    def step(world, rows):
        model = Tiny()
        model.second = torch.nn.Sequential(model.second, torch.nn.Dropout(0.5))
        repulsion = objective.Repulsion(0.3, contrast_null=False, rescale=True)
        terms = objective.FlowMatching(), repulsion
        built = objective.Objective(model, terms=terms, label_dropout=0.5, shard=4)
        trainer = Trainer(built, world=world)
        (log,) = trainer.run([(x1[rows], y[rows])], 1)
        return trainer, log["repulsion_left_out"]

    alone = step(ALONE, slice(16))[1]

    def work():
        with joined() as world:
            torch.manual_seed(world.rank)
            trainer, together = step(world, slice(8 * world.rank, 8 * world.rank + 8))
            assert together == alone > 0
            trainer.save(tmp_path / "saved")
            state = torch.get_rng_state()
            torch.manual_seed(5)
            trainer.resume(tmp_path / "saved")
            assert torch.equal(state, torch.get_rng_state())
        return 0

    started = ranks([work, work], tmp_path)
    assert started.wait() == [0, 0], started.texts()


def test_values_are_averaged_and_one_stop_is_a_stop_of_all(tmp_path):
    def work():
        with joined() as world:
            mean = world.mean(
                {
                    "loss": torch.tensor(1.0 + 2 * world.rank),
                    "bad": torch.tensor([1.0, torch.inf][world.rank]),
                }
            )
            assert float(mean["loss"]) == 2.0
            assert not mean["bad"].isfinite()
            assert world.any(world.rank == 1)
            assert not world.any(False)
            assert world.gather(world.rank) == [0, 1]
            assert world.on_main(lambda: 5) == (5 if world.is_main else None)
            world.agree("nothing", 1)
            with pytest.raises(DistributedError, match="differs between rank 0 and rank 1"):
                world.agree("the rank", world.rank)
        return 0

    started = ranks([work, work], tmp_path)
    assert started.wait() == [0, 0], started.texts()


def test_a_rank_draws_the_shards_of_its_place():
    """Rank 1 of two holds the second half of a batch: its draws are those of one process for these
    rows.
    """
    x, y = torch.randn(16, 2), torch.arange(16) % 3

    def drawn(world, rows):
        trainer = Trainer(objective.delta_fm(Tiny(), shard=4), world=world)
        return trainer._backward((x[rows], y[rows]))["loss"]

    second = World(rank=1, size=1)  # alone, but in the second place: nothing is exchanged
    whole = drawn(ALONE, slice(None))
    parts = [drawn(ALONE, slice(0, 8)), drawn(second, slice(8, 16))]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)
    assert not torch.equal(drawn(ALONE, slice(8, 16)), parts[1])


def end(work, folder, timeout):
    """What both ranks end with and say; `work(world)` may return an exit code. 7: it lost the
    others.

    On busy cores it can take seconds to meet, so `timeout` begins after that.
    """

    def start():
        try:
            with joined() as world:
                world.link.timeout = timeout
                return work(world)
        except DistributedError as error:
            print(error, flush=True)
            return 7

    started = ranks([start, start], folder, timeout=60)
    return started, lambda: (started.wait(90), started.texts())


def test_a_rank_that_works_alone_is_waited_for_longer_than_the_time_out(tmp_path):
    def work(world):
        def slowly():
            time.sleep(5)
            return 5

        assert world.on_main(slowly) == (5 if world.is_main else None)
        world.barrier()
        assert world.share(lambda: world.rank) == 0
        assert world.gather({"rank": world.rank}) == [{"rank": 0}, {"rank": 1}]

    codes, texts = end(work, tmp_path, timeout=4)[1]()
    assert codes == [0, 0], texts
    assert "rank 0 is alive and has worked alone for" in texts[1]


@pytest.mark.parametrize(
    ("how", "victim"), [(signal.SIGKILL, 0), (signal.SIGSTOP, 0), (signal.SIGSTOP, 1)]
)
def test_a_rank_that_dies_or_stops_while_it_works_alone_ends_the_other(tmp_path, how, victim):
    """A stopped process holds its connections open, so only its missing beat shows it, or the
    silence of the store it hosts.
    """

    def work(world):
        world.barrier()  # both have met and are linked; until then the time-out of meeting counts
        if world.rank == victim:
            os.kill(os.getpid(), how)
        world.barrier()

    started, ended = end(work, tmp_path, timeout=1)
    with eventually(80) as wait:
        wait(lambda: "lost the others" in started.texts()[1 - victim])
    if how == signal.SIGSTOP:
        # rank 0 keeps the store, so it is missed by name or by the store's silence
        lost = f"rank {victim} gave no sign of life", f"rank {victim} may be dead"
        assert any(text in started.texts()[1 - victim] for text in lost)
        started.kill(victim)
    codes, _ = ended()
    assert (codes[victim], codes[1 - victim]) == (-signal.SIGKILL, 7)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_ends_alone_is_noticed_long_before_the_time_out(tmp_path, victim):
    def work(world):
        if world.rank == victim:
            return 3  # as after an error of its own
        world.barrier()
        return 0

    codes, texts = end(work, tmp_path, timeout=100)[
        1
    ]()  # the host of the store stays for it no longer than it is asked
    assert codes[victim] == 3
    assert codes[1 - victim] == 7
    assert f"rank {victim} has ended" in texts[1 - victim]


def test_ranks_that_drew_other_parameters_start_from_those_of_rank_0(tmp_path):
    def work(world):
        torch.manual_seed(world.rank)
        model = Tiny()
        model.register_buffer("seen", torch.tensor([world.rank > 0, True]))
        trainer = Trainer(objective.fm(model), world=world)
        for module in (trainer.objective.model, trainer.ema):
            mine = [p.sum().item() for p in (*module.parameters(), *module.buffers())]
            assert len(set(map(str, world.gather(mine)))) == 1

    codes, texts = end(work, tmp_path, timeout=20)[1]()
    assert codes == [0, 0], texts
