"""A named data set, split once: what a generator learns from, and what is held out from it."""

from typing import NamedTuple

import torch
from torch import Tensor

from cfm_lite.checks import check_choice, check_count
from cfm_lite.data import digits, mnist, toy
from cfm_lite.draws import keyed_generator
from cfm_lite.theory import GaussianMixture

__all__ = ["NAMES", "DataSet", "dataset"]

NAMES = ("digits", "mnist", *toy.TOYS)


class DataSet(NamedTuple):
    """Training data `x1` (N, *dims) with labels `y` (N,), held-out data of the same law, and the exact law where it is known."""

    name: str
    x1: Tensor
    y: Tensor
    held_x1: Tensor
    held_y: Tensor
    num_classes: int
    mixture: GaussianMixture | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The dims of one sample."""
        return tuple(self.x1.shape[1:])


def dataset(name: str, *, points: int = 10_000, limit: int | None = None) -> DataSet:
    """Load "digits", "mnist", or make `points` points (and as many held out) of a 2D toy; `limit` cuts the training rows.

    Raises ConfigError for an unknown name and DataError where files are missing or damaged.
    """
    check_choice("dataset", name, NAMES)
    if limit is not None:
        check_count("limit", limit)
    if name == "digits":
        (x1, y), held, mixture = digits.load("train"), digits.load("judge"), None
    elif name == "mnist":
        (x1, y), held, mixture = mnist.load("train"), mnist.load("test"), None
    else:
        check_count("points", points)
        (x1, y), held = (toy.load(name, points, keyed_generator("cpu", 0, name, part)) for part in ("train", "held"))
        mixture = toy.mixture(name) if name in toy.MIXTURES else None
    classes = int(torch.cat([y, held[1]]).max()) + 1
    return DataSet(name, x1[:limit], y[:limit], *held, classes, mixture)
