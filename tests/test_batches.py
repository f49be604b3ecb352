"""The order of batches depends on seed and position alone."""

from itertools import islice

import pytest
import torch

from cfm_lite.data.batches import batches
from cfm_lite.errors import ConfigError

X = torch.arange(10.0)[:, None]
Y = torch.arange(10)


def take(n, **settings):
    return [y for _, y in islice(batches(X, Y, **settings), n)]


def test_every_epoch_shows_every_row_once():
    flat = torch.cat(take(10, size=4))  # 40 rows: four epochs of ten
    for epoch in flat.reshape(4, 10):
        assert sorted(epoch.tolist()) == list(range(10))


def test_epochs_differ_and_seeds_differ():
    a, b = torch.cat(take(10, size=2)).reshape(2, 10)
    assert not torch.equal(a, b)
    assert not torch.equal(torch.cat(take(5, size=2)), torch.cat(take(5, size=2, seed=1)))


@pytest.mark.parametrize("start", [1, 2, 3, 7])
@pytest.mark.parametrize("size", [3, 4, 25])
def test_starting_later_equals_skipping(size, start):
    assert all(
        torch.equal(a, b)
        for a, b in zip(take(12, size=size)[start:], take(12 - start, size=size, start=start))
    )


def test_rows_and_labels_stay_together():
    for x, y in islice(batches(X, Y, size=4), 5):
        assert torch.equal(x[:, 0].long(), y)


def test_unlabelled_data_gives_no_labels():
    assert next(batches(X, size=4))[1] is None


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    take(3, size=4)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: next(batches(X[:0], Y[:0], size=4)), "at least one"),
        (lambda: next(batches(X, Y[:3], size=4)), "same count"),
        (lambda: next(batches(X, Y, size=0)), "size"),
        (lambda: next(batches(X, Y, size=2, start=-1)), "start"),
    ],
)
def test_wrong_arguments_are_refused(call, words):
    with pytest.raises(ConfigError, match=words):
        call()
