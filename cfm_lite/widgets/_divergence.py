"""What the weight λ does to the loss, to training and to samples as λK goes to 1, and what is lost
from there on.

    loss(s) = |s - 1|^2 - λK s^2

s runs along the line from the mean negative (0) through FM's velocity (1), in units of their
distance. The loss is a parabola with its minimum at s = 1 / (1 - λK). At λK = 1 it has no minimum,
and beyond it is a hill.
"""

from cfm_lite.theory import EXACT
from cfm_lite.widgets._widget import Choice, Explorer, Number

__all__ = ["divergence"]


class Divergence(Explorer):
    """Here alone λ goes beyond the bound, to show what is lost."""

    face = "divergence"
    weight = Number(0.05, 0, 1.2)
    k = Choice(1, (1, 2, 4))
    method = Choice("delta_fm", EXACT[1:])


def divergence(weight: float = 0.05, k: int = 1, method: str = "delta_fm") -> Explorer:
    """Explore λ up to and beyond the bound λK = 1: the loss along a line, gradient descent on it,
    and the samples at the optimum.

    Left: the loss against the position s of the velocity; s = 0 is the mean negative, s = 1 is FM's
    velocity. Middle: s during gradient descent from 0. Right: where the exact paths of the
    two-class toy end. Raises ConfigError for a wrong value; λ may be at most 1.2.

    >>> divergence(weight=0.3, k=2).values
    {'k': 2, 'method': 'delta_fm', 'weight': 0.3}
    """
    return Divergence(weight=weight, k=k, method=method)
