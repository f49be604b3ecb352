"""What was measured, read from a folder of rows: values by seed, and paired differences, wherever a
report asks for them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from cfm_lite.lab.measures import Row
from cfm_lite.lab.statistics import Difference, paired_difference
from cfm_lite.lab.store import Store
from cfm_lite.lab.suites import SUITES

__all__ = ["Place", "Results", "percent", "said_of", "tell"]

QUALITY = {"toy": "sliced_wasserstein"}  # and the Fréchet distance elsewhere
LOWER_IS_BETTER = {
    "frechet",
    "sliced_wasserstein",
    "mmd",
    "drift",
    "field_error",
    "trajectory_error",
}


@dataclass(frozen=True)
class Place:
    """Where a value stands: the group's file and all that the seeds have in common there."""

    method: str = "fm"
    group: str = "core"
    variant: str = ""
    nfe: int = 50
    sampler: str = "euler"
    guidance: float = 1.0


class Results:
    """The rows of every suite in `folder`, which are all that a report reads."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @cached_property
    def _stores(self) -> Mapping[str, Store]:
        stores = {name: Store(self.folder, name) for name in SUITES}
        return {name: store for name, store in stores.items() if store.path("core").exists()}

    @cached_property
    def suites(self) -> Mapping[str, Store]:
        """The suites whose core was run; a miniature is none, for its numbers mean nothing."""
        return {name: store for name, store in self._stores.items() if name not in self.miniatures}

    @cached_property
    def miniatures(self) -> Mapping[str, Store]:
        """The suites of which only a miniature was run."""
        return {
            name: store
            for name, store in self._stores.items()
            if store.info().get("quick") or _marked(store)
        }

    @cached_property
    def _rows(self) -> Mapping[tuple[str, str], Sequence[Row]]:
        return {
            (name, group): store.rows(group)
            for name, store in self.suites.items()
            for group in SUITES[name].groups
        }

    @cached_property
    def _values(self) -> Mapping[tuple[str, Place, str], Mapping[int, float]]:
        """{(suite, place, metric): {seed: value}} of all rows; a value that was not finite is left
        out.
        """
        table: dict[tuple[str, Place, str], dict[int, float]] = {}
        for (suite, group), rows in self._rows.items():
            for row in rows:
                place = Place(
                    row["method"],
                    group,
                    row.get("variant", ""),
                    row["nfe"],
                    row["sampler"],
                    row["guidance"],
                )
                cell = table.setdefault((suite, place, row["metric"]), {})
                if row["value"] is not None:
                    cell[row["seed"]] = row["value"]
        return table

    @cached_property
    def _places(self) -> set[tuple[str, Place]]:
        return {(suite, place) for suite, place, _ in self._values}

    def rows(self, suite: str, group: str = "core") -> Sequence[Row]:
        """The rows of a group; none where it was not run."""
        return self._rows.get((suite, group), [])

    def seeds(self, suite: str, group: str = "core") -> int:
        """How many seeds a group has."""
        return len({row["seed"] for row in self.rows(suite, group)})

    def nfes(self, suite: str, group: str = "core") -> list[int]:
        """The numbers of evaluations of a group, fewest first."""
        return sorted({row["nfe"] for row in self.rows(suite, group)})

    def methods(self, suite: str, group: str = "core") -> list[str]:
        """The methods of a group, in the order of its rows."""
        return list(dict.fromkeys(row["method"] for row in self.rows(suite, group)))

    def variants(self, suite: str, group: str, method: str = "") -> list[str]:
        """The variants of a group (those that `method` has), in the order of its rows."""
        return list(
            dict.fromkeys(
                row["variant"]
                for row in self.rows(suite, group)
                if method in ("", row["method"])
                if "variant" in row
            )
        )

    def values(self, suite: str, place: Place, metric: str) -> dict[int, float]:
        """{seed: value} of a metric at a place."""
        return dict(self._values.get((suite, place, metric), {}))

    def mean(self, suite: str, place: Place, metric: str) -> float:
        """The mean over the seeds; NaN where there are none."""
        values = list(self.values(suite, place, metric).values())
        return float(np.mean(values)) if values else float("nan")

    def base(self, suite: str, place: Place) -> Place:
        """Plain FM as it is to be compared with `place`: of the same group and variant where it was
        run there, else of the core.
        """
        here = replace(place, method="fm")
        there = replace(here, group="core", variant="")
        return here if (suite, here) in self._places else there

    def difference(
        self, suite: str, place: Place, metric: str | None = None, base: Place | None = None
    ) -> Difference | None:
        """The paired difference of `place` to `base` (plain FM) in `metric` (the suite's measure of
        quality); None without pairs.
        """
        metric = metric or quality(suite)
        mine, other = (
            self.values(suite, at, metric) for at in (place, base or self.base(suite, place))
        )
        return (
            paired_difference(place.method, metric, place.nfe, mine, other)
            if mine.keys() & other.keys()
            else None
        )


def _marked(store: Store) -> bool:
    """Whether the rows of a core themselves say that they are a miniature's."""
    return any(row.get("miniature") for row in store.rows("core")[:1])


def quality(suite: str) -> str:
    """The metric that says how near the samples of a suite are to the data."""
    return QUALITY.get(suite, "frechet")


def said_of(d: Difference) -> str:
    """What the statistics allow to be said: "gains", "loses" or "no clear difference"."""
    if not d.clear:
        return "no clear difference"
    return "gains" if (d.mean < 0) == (d.metric in LOWER_IS_BETTER) else "loses"


def number(value: float, sign: bool = False) -> str:
    """`value` with three digits, and a true minus sign."""
    form = ".5f" if 0 < abs(value) < 10**-3 else ".3g" if abs(value) < 10**3 else ",.0f"
    text = f"{value:{'+' if sign else ''}{form}}"
    return text.replace("-", "−")


def interval(d: Difference) -> str:
    """Mean, 95 % bootstrap interval and number of seeds of a difference; Student's interval, too,
    where it alone contains zero.
    """
    if d.seeds < 2:
        return f"{number(d.mean, True)}, one seed"
    text = f"{number(d.mean, True)} [{number(d.low, True)}, {number(d.high, True)}], n = {d.seeds}"
    if not d.clear and (d.low > 0 or d.high < 0):
        text += f"; Student's 98 % [{number(d.t_low, True)}, {number(d.t_high, True)}]"
    return text


def tell(name: str, d: Difference | None) -> str:
    """A clause: who, the verdict, and the numbers."""
    return f"{name}: not measured yet" if d is None else f"{name}: {said_of(d)} ({interval(d)})"


def percent(d: Difference, base: float) -> str:
    """The mean difference as a share of FM's mean."""
    share = 100 * d.mean / base if base else float("nan")
    return f"{share:+.{0 if abs(share) >= 1 else 1}f} %".replace("-", "−") if base else "no share"
