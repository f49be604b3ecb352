"""What two processes owe each other, without a training run: means, stop requests, agreement, and their own shards."""

import pytest
import torch

from cfm_lite import objective
from cfm_lite.distributed import ALONE, World, joined
from cfm_lite.errors import DistributedError
from cfm_lite.training import Trainer
from tests.networks import Tiny
from tests.processes import ranks


def test_values_are_averaged_and_one_stop_is_a_stop_of_all(tmp_path):
    def work():
        with joined() as world:
            mean = world.mean({"loss": torch.tensor(1.0 + 2 * world.rank), "bad": torch.tensor([1.0, torch.inf][world.rank])})
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
    assert started.wait(60) == [0, 0], started.texts()


def test_a_rank_draws_the_shards_of_its_place():
    """Rank 1 of two holds the second half of a batch: its draws are those of one process for these rows."""
    x, y = torch.randn(16, 2), torch.arange(16) % 3

    def drawn(world, rows):
        trainer = Trainer(objective.delta_fm(Tiny(), shard=4), world=world)
        return trainer._backward((x[rows], y[rows]))["loss"]

    second = World(rank=1, size=1)  # alone, but in the second place: nothing is exchanged
    whole = drawn(ALONE, slice(None))
    parts = [drawn(ALONE, slice(0, 8)), drawn(second, slice(8, 16))]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)
    assert not torch.equal(drawn(ALONE, slice(8, 16)), parts[1])
