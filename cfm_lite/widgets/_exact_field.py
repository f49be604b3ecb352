"""The exact field of a mixture: what attracts, what repels and their sum, at any time, for any
class and any weight; nothing is trained.

v* = (v - λ u_neg) / (1 - λ) = v + λ / (1 - λ) (v - u_neg),   v = E[u_t | x_t, y] of FM
"""

from typing import Any

from cfm_lite._internal.checks import check_count
from cfm_lite.theory import EXACT, GaussianMixture
from cfm_lite.widgets._widget import (
    MOST,
    PATHS,
    Choice,
    Explorer,
    Number,
    Weight,
    class_or_all,
    classes,
    shown,
)

__all__ = ["exact_field"]


class ExactField(Explorer):
    """`view` is "parts" (attraction, repulsion, both) or "methods" (FM, ΔFM and VeCoR)."""

    face = "exact_field"
    t = Number(0.5, 0, 1)
    weight = Weight()
    label = Choice(0, class_or_all)
    method = Choice(EXACT[1], EXACT[1:])
    path = Choice("linear", PATHS)
    view = Choice("parts", ("parts", "methods"))


def exact_field(
    mixture: GaussianMixture | None = None,
    *,
    n: int = 17,
    t: float = 0.5,
    weight: float = 0.35,
    **values: Any,
) -> Explorer:
    """Explore the closed-form field of a 2D `mixture` (default: the two-class toy): time, class,
    method, path and weight λ; `n` arrows, at most 64, stand in a row.

    Three planes on one scale of arrows, drawn where 99.5 % of the class is at time t. view="parts":
    FM's velocity (green), the push away from the negatives (vermilion), and their sum (purple).
    view="methods": FM, ΔFM and VeCoR. Raises ConfigError for a wrong value, for a mixture that is
    not 2D, and for one of more than 64 components.

    >>> w = exact_field(weight=0.2)
    >>> w.set(t=0.9).values["t"]
    0.9
    """
    data = {"mixture": shown(mixture), "n": check_count("n", n, high=MOST)}
    return ExactField(data, t=t, weight=weight, **{"label": classes(data)[0]} | values)
