"""An answer to one of the eight questions of the lab: sentences and a figure, computed from the rows.

Sentences choose their verdicts by the statistics alone, and say "not measured yet" where rows are missing. The questions
themselves stand in `benefits` and `mechanisms`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cfm_lite.experiments.results import quality, said_of
from cfm_lite.experiments.statistics import Difference
from cfm_lite.viz import Panel, Picture, difference_rows, method_style

__all__ = ["NAMES", "TITLES", "Answer", "Told", "in_short", "quality_panel", "rows_figure", "title", "where"]

TITLES = {"toy": "Plane, exact law known", "digits": "Digits, 8 × 8", "mnist": "MNIST, 28 × 28", "cifar10": "CIFAR-10, 32 × 32"}
NAMES = {"frechet": "Fréchet distance", "sliced_wasserstein": "sliced Wasserstein distance", "recall": "recall"}


@dataclass(frozen=True)
class Answer:
    """A question, its answer in one sentence, the numbers behind it, what the papers say, and a figure where there are rows for one."""

    question: str
    short: str
    sentences: Sequence[str]
    papers: Sequence[str] = ()
    figure: Picture | None = None


def quality_panel(suite: str, title: str = "", metric: str = "") -> Panel:
    """The panel of a suite's differences to FM."""
    metric = metric or quality(suite)
    return Panel(title or TITLES.get(suite, suite), f"{NAMES.get(metric, metric)} minus FM's", "higher" if metric == "recall" else "lower")


def rows_figure(blocks: Mapping[Panel, Sequence[tuple[str, Difference | None]]]) -> Picture | None:
    """`difference_rows` of what was measured; None where nothing was."""
    found = {panel: [(label, d) for label, d in rows if d is not None] for panel, rows in blocks.items()}
    found = {panel: rows for panel, rows in found.items() if rows}
    return difference_rows(found) if found else None


Told = Sequence[tuple[str, Difference | None]]  # (who and where, difference)


def in_short(told: Told, gain: str = "Clear gains", loss: str = "Clear losses") -> str:
    """One sentence that sorts what was compared by what the statistics allow to be said."""
    found = [(name, d) for name, d in told if d is not None]
    if not found:
        return "Not measured yet."
    sorted_by = {word: [name for name, d in found if said_of(d) == word] for word in ("gains", "loses", "no clear difference")}
    heads = zip((gain, loss, "no clear difference"), sorted_by.values())
    return "; ".join(f"{head}: {', '.join(names) or 'none'}" for head, names in heads) + "."


def where(suite: str) -> str:
    """The suite's name inside a sentence."""
    return f"on {suite}" if suite != "toy" else "in the plane"


def title(method: str) -> str:
    """A method's name."""
    return method_style(method).label
