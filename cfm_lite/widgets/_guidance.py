"""Guidance on repelled fields: how classifier-free guidance and ΔFM or VeCoR add up, and what the
correction undoes.

    guided = n + scale (v - n)

v is the velocity of a class and n that of all data. The correction maps both back to FM's first.
"""

from typing import Any

from cfm_lite.theory import EXACT
from cfm_lite.widgets._widget import (
    TRAINED,
    Choice,
    Explorer,
    Flag,
    Interval,
    Number,
    Weight,
    one_class,
)

__all__ = ["guidance"]


class Guidance(Explorer):
    """`correct` maps the field back to FM's inside the `interval`."""

    face = "guidance"
    scale = Number(2.0, 0, 6)
    weight = Weight()
    interval = Interval()
    method = Choice("delta_fm", (*EXACT[1:], *TRAINED[1:]))
    label = Choice(0, one_class)
    correct = Flag()
    asks_networks = True


def guidance(
    scale: float = 2.0,
    method: str = "delta_fm",
    label: int = 0,
    correct: bool = False,
    **values: Any,
) -> Explorer:
    """Explore guidance: its scale, the interval of t in which it acts, the field, λ, the class, and
    the correction on or off.

    Left FM, right the repelled field, both with the same guidance and from the same noise (20 Euler
    steps); black contours hold 50 % and 95 % of the class. With the correction, the exact repelled
    field gives FM's paths again inside the interval. Raises ConfigError for a wrong value.

    >>> guidance(scale=3, correct=True).interval
    (0.0, 1.0)
    """
    return Guidance(scale=scale, method=method, label=label, correct=correct, **values)
