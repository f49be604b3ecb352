"""Particles through an exact or a trained field: how λ, steps, solver and training let them drift
off the data.

Drift of a state, in nats: -log p_t(x | y), less what it is on average for exact draws at the same
time. 0 is typical.
"""

from typing import Any

from cfm_lite.samplers import STAGES
from cfm_lite.theory import EXACT
from cfm_lite.widgets._widget import (
    TRAINED,
    Choice,
    Explorer,
    Flag,
    Number,
    Weight,
    Whole,
    class_or_all,
)

__all__ = ["trajectories"]


class Trajectories(Explorer):
    """`beside` shows FM, ΔFM and VeCoR on the same noise; `weight` is that of the exact fields."""

    face = "trajectories"
    t = Number(1.0, 0, 1)
    weight = Weight()
    field = Choice("fm", (*EXACT, *TRAINED))
    beside = Flag()
    label = Choice(0, class_or_all)
    solver = Choice("euler", tuple(STAGES))
    steps = Whole(8, 1, 32)
    asks_networks = True


def trajectories(
    field: str = "fm", solver: str = "euler", steps: int = 8, label: int = 0, **values: Any
) -> Explorer:
    """Explore paths of the two-class toy: the field (exact or trained), λ, solver, number of steps,
    class (-1 for both), and time t with a play button.

    Left: the same particles (500, or 72 through a network), coloured by their drift; black contours
    hold 50 % and 95 % of the class. Right: the mean drift along the paths, in nats above typical.
    The networks ("toy_fm", ...) were trained with λ = 0.35. Raises ConfigError for a wrong value.

    >>> trajectories("vecor", solver="heun").steps
    8
    """
    return Trajectories(field=field, solver=solver, steps=steps, label=label, **values)
