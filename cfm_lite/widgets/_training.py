"""A small network that learns in the page itself, beside the exact optimum of its objective."""

from cfm_lite.theory import GaussianMixture
from cfm_lite.widgets._widget import (
    Choice,
    Explorer,
    Flag,
    Number,
    Weight,
    class_or_all,
    classes,
    shown,
)

__all__ = ["training"]


class Training(Explorer):
    """`run` starts and stops; a new `weight` starts again."""

    face = "training"
    t = Number(0.5, 0, 0.95)
    weight = Weight(0.0)
    label = Choice(0, class_or_all)
    run = Flag()


def training(mixture: GaussianMixture | None = None, *, weight: float = 0.0) -> Explorer:
    """Watch a network of 5,000 weights learn the field of a 2D `mixture` (default: the two-class
    toy): FM, or with a `weight` λ above 0 ΔFM; Adam, batches of 128, 1,500 steps.

    Left the exact optimum, middle the network's field, on one scale of arrows; right the error of
    the network against the exact field. Raises ConfigError as `exact_field` does.
    """
    data = {"mixture": shown(mixture)}
    return Training(data, weight=weight, label=classes(data)[0])
