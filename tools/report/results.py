"""The measured rows of a folder: values by seed, and paired differences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cfm_lite._internal.places import expanded
from cfm_lite.lab.figures import quality
from cfm_lite.lab.measures import Row
from cfm_lite.lab.statistics import Difference, paired_difference
from cfm_lite.lab.store import Store
from cfm_lite.lab.suites import SUITES
from cfm_lite.viz import METRICS

__all__ = ["Place", "Results", "interval", "number", "percent", "said_of"]


@dataclass(frozen=True)
class Place:
    """What identifies a value, beside suite, metric and seed.

    >>> Place("vecor", nfe=10).sampler
    'euler'
    """

    method: str = "fm"
    group: str = "core"
    variant: str = ""
    nfe: int = 50
    sampler: str = "euler"
    guidance: float = 1.0


class Results:
    """The rows of every suite in `folder`. A report reads nothing else.

    >>> import tempfile
    >>> dict(Results(tempfile.mkdtemp()).suites)  # nothing was run there
    {}
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = expanded(folder)

    @cached_property
    def _stores(self) -> Mapping[str, tuple[Store, bool]]:
        """{suite: (its files, whether they are a miniature)}."""
        found = {}
        for store in (Store(self.folder, name) for name in SUITES):
            if rows := store.rows("core"):
                marked = bool(rows[0].get("miniature"))
                found[store.suite] = (store, marked or bool(store.info().get("quick")))
        return found

    @cached_property
    def suites(self) -> Mapping[str, Store]:
        """The suites whose core was run in full. Miniatures are left out: their numbers mean
        nothing.
        """
        return {name: store for name, (store, small) in self._stores.items() if not small}

    @cached_property
    def miniatures(self) -> Mapping[str, Store]:
        """The suites with only a miniature."""
        return {name: store for name, (store, small) in self._stores.items() if small}

    @cached_property
    def _rows(self) -> Mapping[tuple[str, str], Sequence[Row]]:
        return {(s, g): store.rows(g) for s, store in self.suites.items() for g in SUITES[s].groups}

    @cached_property
    def _values(self) -> Mapping[tuple[str, Place, str], dict[int, float]]:
        """{(suite, place, metric): {seed: value}}, without values that were not finite."""
        table: dict[tuple[str, Place, str], dict[int, float]] = {}
        for (suite, group), rows in self._rows.items():
            for row in rows:
                how = (row["nfe"], row["sampler"], row["guidance"])
                place = Place(row["method"], group, row.get("variant", ""), *how)
                cell = table.setdefault((suite, place, row["metric"]), {})
                if row["value"] is not None:
                    cell[row["seed"]] = row["value"]
        return table

    @cached_property
    def _places(self) -> set[tuple[str, Place]]:
        return {(suite, place) for suite, place, _ in self._values}

    def rows(self, suite: str, group: str = "core") -> Sequence[Row]:
        """The rows of a group; empty if it was not run."""
        return self._rows.get((suite, group), [])

    def known(self, suite: str, group: str, field: str) -> list[Any]:
        """The values of a field, such as "method", in the order of a group's rows."""
        return list(dict.fromkeys(row[field] for row in self.rows(suite, group) if field in row))

    def nfes(self, suite: str, group: str = "core") -> list[int]:
        """The numbers of evaluations of a group, fewest first."""
        return sorted(self.known(suite, group, "nfe"))

    def core(self, suite: str, method: str = "fm") -> Place:
        """Where a suite's core says most of `method`: at its most evaluations and least guidance."""
        scales = self.known(suite, "core", "guidance")
        return Place(method, nfe=self.nfes(suite)[-1], guidance=min(scales))

    def methods(self, suite: str, group: str = "core") -> list[str]:
        """The methods of a group, in the order of its rows."""
        return self.known(suite, group, "method")

    def values(self, suite: str, place: Place, metric: str) -> dict[int, float]:
        """{seed: value} of a metric at a place."""
        return dict(self._values.get((suite, place, metric), {}))

    def mean(self, suite: str, place: Place, metric: str) -> float:
        """The mean over the seeds; NaN if there are none."""
        values = list(self.values(suite, place, metric).values())
        return float(np.mean(values)) if values else float("nan")

    def base(self, suite: str, place: Place) -> Place:
        """Plain FM to compare `place` with: of its own variant if it was run, else of the core."""
        here = replace(place, method="fm")
        return here if (suite, here) in self._places else replace(here, group="core", variant="")

    def difference(
        self, suite: str, place: Place, metric: str | None = None, base: Place | None = None
    ) -> Difference | None:
        """The paired difference of `place` to `base` in `metric`; None without pairs.

        Defaults are plain FM and the suite's measure of quality.
        """
        metric, base = metric or quality(suite), base or self.base(suite, place)
        mine, other = (self.values(suite, at, metric) for at in (place, base))
        paired = mine.keys() & other.keys()
        return paired_difference(place.method, metric, place.nfe, mine, other) if paired else None


def said_of(d: Difference) -> str:
    """The verdict of the statistics: "gains", "loses" or "no clear difference".

    >>> said_of(Difference("vecor", "frechet", 50, -0.2, 0.1, -0.3, -0.1, 8, -0.4, -0.1))
    'gains'
    """
    if not d.clear:
        return "no clear difference"
    lower = d.metric in METRICS and METRICS[d.metric].better == "lower is better"
    return "gains" if (d.mean < 0) == lower else "loses"


def number(value: float, sign: bool = False) -> str:
    """`value` with three digits and a true minus sign.

    >>> number(-0.12345), number(12345.6), number(0.5, sign=True)
    ('−0.123', '12,346', '+0.5')
    """
    form = ".5f" if 0 < abs(value) < 10**-3 else ".3g" if abs(value) < 10**3 else ",.0f"
    return f"{value:{'+' if sign else ''}{form}}".replace("-", "−")


def interval(d: Difference) -> str:
    """Mean, 95 % bootstrap interval and number of seeds.

    Student's interval is added if it alone contains zero.

    >>> interval(Difference("vecor", "frechet", 50, -0.2, 0.1, -0.3, -0.1, 8, -0.4, -0.1))
    '−0.2 [−0.3, −0.1], n = 8'
    """
    if d.seeds < 2:
        return f"{number(d.mean, True)}, one seed"
    text = f"{number(d.mean, True)} [{number(d.low, True)}, {number(d.high, True)}], n = {d.seeds}"
    if not d.clear and (d.low > 0 or d.high < 0):
        text += f"; Student's 98 % [{number(d.t_low, True)}, {number(d.t_high, True)}]"
    return text


def percent(d: Difference, base: float) -> str:
    """The mean difference as a share of the base's mean.

    >>> percent(Difference("vecor", "frechet", 50, -0.2, 0.1, -0.3, -0.1, 8), base=2.0)
    '−10 %'
    """
    share = 100 * d.mean / base if base else float("nan")
    return f"{share:+.{0 if abs(share) >= 1 else 1}f} %".replace("-", "−") if base else "no share"
