"""Toy sets in the plane, made on the fly: x1 (n, 2) float32 and a class label y (n,) int64 per
point.

They are centred and scaled for noise N(0, I), with points within [-4, 4]^2 and equal classes.
Figure 3 of contrastive flow matching is the one exception: its source N((-15, 0), 0.25 I) becomes
N(0, I) by x' = (x + (15, 0)) / 0.5, so its two modes lie near x' = (40, 0). If a set is a Gaussian
mixture, `mixture(name)` is its exact density.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Protocol

import torch
from torch import Generator, Tensor

from cfm_lite._internal.checks import check_choice, check_count, check_floating, check_generator
from cfm_lite.errors import ConfigError
from cfm_lite.theory import GaussianMixture

__all__ = [
    "MIXTURES",
    "TOYS",
    "Toy",
    "checkerboard",
    "circles",
    "figure3",
    "from_figure3",
    "gaussians",
    "load",
    "mixture",
    "moons",
    "spirals",
    "swiss_roll",
    "to_figure3",
    "two_classes",
]


class Toy(Protocol):
    """A toy set: `n` points (n, 2) float32 and labels (n,) int64. ConfigError unless n is an
    integer >= 1.

    >>> draw: Toy = TOYS["moons"]
    >>> draw(3)[0].shape
    torch.Size([3, 2])
    """

    def __call__(self, n: int, *, generator: Generator | None = None) -> tuple[Tensor, Tensor]: ...


def _each(n: int, value: float) -> Tensor:
    """`value` for each of `n` modes (n,), rounded to float32."""
    return torch.full((n,), value, dtype=torch.float32, device="cpu").double()


def _ring_of_gaussians() -> GaussianMixture:
    angles = torch.arange(8, dtype=torch.float64, device="cpu") * (math.pi / 4)
    means = 2 * torch.stack([angles.cos(), angles.sin()], dim=1)  # (8, 2)
    labels = torch.arange(8, device="cpu")
    return GaussianMixture(_each(8, 1 / 8), means, _each(8, 0.2), labels=labels)


def _two_classes() -> GaussianMixture:
    # each class is on both sides, so its mean says little: the right direction depends on x
    means = torch.tensor(
        [[-1.5, 1.8], [2.3, 0.9], [2.3, -0.9], [-1.5, -1.8]], dtype=torch.float64, device="cpu"
    )
    labels = torch.tensor([0, 0, 1, 1], device="cpu")
    return GaussianMixture(_each(4, 0.25), means, _each(4, 0.35), labels=labels)


def _figure3() -> GaussianMixture:
    # the second is 12.57 degrees
    angles = torch.tensor(
        [0.0, (4 * math.pi / 360) * 2 * math.pi], dtype=torch.float64, device="cpu"
    )
    modes = 5 * torch.stack([angles.cos(), angles.sin()], dim=1)
    labels = torch.arange(2, device="cpu")
    return GaussianMixture(_each(2, 0.5), from_figure3(modes), _each(2, 1.0), labels=labels)


MIXTURES: dict[str, Callable[[], GaussianMixture]] = {
    "gaussians": _ring_of_gaussians,
    "two_classes": _two_classes,
    "figure3": _figure3,
}


def mixture(name: str) -> GaussianMixture:
    """The exact density of a toy set, in float64, with class labels. ConfigError if it is not a
    mixture.

    >>> mixture("gaussians").means.norm(dim=1).mean()
    tensor(2., dtype=torch.float64)
    """
    check_choice("name of a toy mixture", name, MIXTURES)
    return MIXTURES[name]()


_kept = cache(mixture)  # drawing a batch need not build the density again


def _draw(name: str, n: int, generator: Generator | None) -> tuple[Tensor, Tensor]:
    x1, y = _kept(name).sample(n, generator=generator)
    return x1.float(), y


def gaussians(n: int, *, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
    """Eight Gaussians of standard deviation 0.2 on a ring of radius 2.

    Labels 0 to 7 count them anticlockwise from (2, 0).

    >>> x1, y = gaussians(1000, generator=torch.Generator().manual_seed(0))
    >>> x1[y == 0].mean(0).round()
    tensor([2., 0.])
    """
    return _draw("gaussians", n, generator)


def two_classes(n: int, *, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
    """Two classes of two Gaussians each, with standard deviation 0.35. Class 1 mirrors class 0
    below it.

    >>> x1, y = two_classes(1000, generator=torch.Generator().manual_seed(0))
    >>> x1[y == 0, 1].min() > x1[y == 1, 1].min()  # class 1 lies below
    tensor(True)
    """
    return _draw("two_classes", n, generator)


def figure3(n: int, *, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
    """The two near modes of figure 3, one per class, in coordinates with source N(0, I).

    Reference: Stoica et al. 2025 (arXiv:2506.05350), figure 3.

    >>> figure3(1000, generator=torch.Generator().manual_seed(0))[0].mean(0).round()
    tensor([40.,  1.])
    """
    return _draw("figure3", n, generator)


def _check_plane(x: Tensor) -> None:
    check_floating(x=x)
    if x.shape[-1:] != (2,):
        raise ConfigError(f"x has shape {tuple(x.shape)}; points of the plane are (..., 2).")


def to_figure3(x: Tensor) -> Tensor:
    """From our coordinates `x` (..., 2) to those of the figure: 0.5 x - (15, 0).

    A velocity takes only the factor 0.5.

    Raises ConfigError for points that are no floating (..., 2).

    >>> to_figure3(torch.zeros(2))  # the mean of the source
    tensor([-15.,   0.])
    """
    _check_plane(x)
    return 0.5 * x - x.new_tensor([15.0, 0.0])


def from_figure3(x: Tensor) -> Tensor:
    """From the figure's coordinates `x` (..., 2) to those with source N(0, I): (x + (15, 0)) /
    0.5.

    Raises ConfigError for points that are no floating (..., 2).

    >>> from_figure3(torch.tensor([5.0, 0.0]))  # the mean of class 0
    tensor([40.,  0.])
    """
    _check_plane(x)
    return (x + x.new_tensor([15.0, 0.0])) / 0.5


def _classes(n: int, generator: Generator | None) -> Tensor:
    check_generator(generator)
    return torch.randint(2, (check_count("n", n),), generator=generator, device="cpu")


def _uniform(n: int, generator: Generator | None) -> Tensor:
    # float32 even if torch's default type is another
    return torch.rand(n, generator=generator, device="cpu", dtype=torch.float32)


def _polar(radius: Tensor, angle: Tensor) -> Tensor:
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)  # (n, 2)


def _blur(x1: Tensor, noise: float, generator: Generator | None) -> Tensor:
    return x1 + noise * torch.randn(
        x1.shape, generator=generator, device="cpu", dtype=torch.float32
    )


def moons(n: int, *, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
    """Two interleaved half circles of radius 1.6 with noise 0.08; class 0 is the upper one.

    They are scikit-learn's moons, centred, times 1.6.

    Raises ConfigError for n below 1.

    >>> x1, y = moons(1000, generator=torch.Generator().manual_seed(0))
    >>> x1[y == 0, 1].mean() > x1[y == 1, 1].mean()
    tensor(True)
    """
    y = _classes(n, generator)
    half_circle = 1.6 * _polar(
        torch.ones(n, dtype=torch.float32, device="cpu"), math.pi * _uniform(n, generator)
    ) - torch.tensor([0.8, 0.4], dtype=torch.float32, device="cpu")
    # class 1 is class 0 turned by pi
    return _blur(half_circle * (1 - 2 * y[:, None]), 0.08, generator), y


def circles(n: int, *, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
    """Two circles with noise 0.08: class 0 of radius 2, class 1 of radius 1.

    They are scikit-learn's circles with factor 0.5, doubled.

    Raises ConfigError for n below 1.

    >>> x1, y = circles(1000, generator=torch.Generator().manual_seed(0))
    >>> [x1[y == c].norm(dim=1).mean().round().item() for c in (0, 1)]
    [2.0, 1.0]
    """
    y = _classes(n, generator)
    return _blur(_polar(2.0 - y.float(), 2 * math.pi * _uniform(n, generator)), 0.08, generator), y


def swiss_roll(n: int, *, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
    """The section of scikit-learn's Swiss roll: 1.5 turns from radius 0.8 to 2.5, with noise 0.06.

    Class 0 is the inner half of the turns.

    Raises ConfigError for n below 1.

    >>> x1, y = swiss_roll(1000, generator=torch.Generator().manual_seed(0))
    >>> x1[y == 0].norm(dim=1).mean() < x1[y == 1].norm(dim=1).mean()
    tensor(True)
    """
    check_generator(generator)
    turn = math.pi * (1.5 + 3 * _uniform(check_count("n", n), generator))
    return _blur(_polar(turn * 2.5 / (4.5 * math.pi), turn), 0.06, generator), (
        turn > 3 * math.pi
    ).long()


def spirals(n: int, *, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
    """Two arms of a spiral, 1.25 turns each, from radius 0.4 to 2.5 with noise 0.06.

    Each arm is a class; one is the other turned by pi.

    Raises ConfigError for n below 1.

    >>> x1, y = spirals(1000, generator=torch.Generator().manual_seed(0))
    >>> bool(x1.norm(dim=1).max() < 3)
    True
    """
    y = _classes(n, generator)
    # the root spreads the points nearly evenly along the arm
    outward = _uniform(n, generator).sqrt()
    arm = _polar(0.4 + 2.1 * outward, 2.5 * math.pi * outward + math.pi * y.float())
    return _blur(arm, 0.06, generator), y


def checkerboard(n: int, *, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
    """Uniform points on the dark squares of a 4x4 board on [-2, 2]^2.

    Rows alternate between class 0 and class 1, counted from below.

    Raises ConfigError for n below 1.

    >>> x1, y = checkerboard(1000, generator=torch.Generator().manual_seed(0))
    >>> column, row = (x1 + 2).long().T
    >>> bool(((column + row) % 2 == 0).all()), bool((row % 2 == y).all())
    (True, True)
    """
    column = _classes(n, generator)
    row = torch.randint(4, (n,), generator=generator, device="cpu")
    # (n, 2) lower left corner of the square
    corner = torch.stack([2 * column + row % 2, row], dim=1) - 2
    return corner.float() + torch.rand(
        n, 2, generator=generator, device="cpu", dtype=torch.float32
    ), row % 2


TOYS: dict[str, Toy] = {
    "gaussians": gaussians,
    "moons": moons,
    "circles": circles,
    "checkerboard": checkerboard,
    "spirals": spirals,
    "swiss_roll": swiss_roll,
    "two_classes": two_classes,
    "figure3": figure3,
}


def load(name: str, n: int, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
    """`n` points (n, 2) float32 and labels (n,) int64 of the toy set `name`.

    Raises ConfigError for an unknown name, with the nearest one, and for n below 1.

    >>> x1, y = load("spirals", 5)
    >>> x1.shape, y.dtype
    (torch.Size([5, 2]), torch.int64)
    """
    check_choice("name of a toy set", name, TOYS)
    return TOYS[name](n, generator=generator)
