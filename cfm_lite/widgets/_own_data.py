"""Draw your own data: a click adds a component, a drag moves it; the fields of FM, ΔFM and VeCoR
follow on the same noise.
"""

from typing import Any

from cfm_lite.errors import ConfigError
from cfm_lite.theory import GaussianMixture
from cfm_lite.widgets._widget import (
    Choice,
    Control,
    Explorer,
    Number,
    Weight,
    Whole,
    described,
    shown,
)

__all__ = ["own_data"]

_KINDS = 4  # classes that a hand can give


class Drawn(Control):
    """A mixture as the page and Python exchange it."""

    def validate(self, obj: Any, value: Any) -> dict[str, Any]:
        if isinstance(value, GaussianMixture):
            return described(value)
        try:
            parts = {name: value[name] for name in ("weights", "means", "labels")}
        except (TypeError, KeyError):
            raise ConfigError(f"mixture is {value!r:.40}; it must be a GaussianMixture.") from None
        kind = "stds" if value.get("stds") is not None else "covariances"
        return described(GaussianMixture(**parts, **{kind: value.get(kind)}))


class OwnData(Explorer):
    """`label` and `spread` are those of the next component; `chosen` is the one in hand, or -1."""

    face = "own_data"
    t = Number(1.0, 0, 1)
    weight = Weight()
    label = Choice(0, range(_KINDS))
    spread = Number(0.35, 0.1, 1.2)
    chosen = Whole(-1, -1, 64)
    mixture = Drawn({})

    @property
    def drawn(self) -> GaussianMixture:
        """What stands on the page, as a mixture."""
        return GaussianMixture(**self.mixture)


def own_data(mixture: GaussianMixture | None = None, *, weight: float = 0.35) -> OwnData:
    """Draw data in the plane, and see where FM, ΔFM and VeCoR carry the same noise; nothing is
    trained.

    A click adds a component of the chosen class and spread, a drag moves it, and what is dragged
    out is gone. `explorer.drawn` is the GaussianMixture on the page, and `explorer.mixture = other`
    puts another one there. Raises ConfigError for a wrong value, and for more than 64 components.
    """
    found = shown(mixture)
    return OwnData({"mixture": found}, weight=weight, mixture=found)
