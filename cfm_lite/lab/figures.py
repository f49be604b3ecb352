"""The figure of a suite beside its rows, and the metric that it draws first."""

from collections.abc import Sequence

from cfm_lite import viz
from cfm_lite.lab.arms import TRAINED
from cfm_lite.lab.measures import Row
from cfm_lite.viz import Picture

__all__ = ["quality", "quality_figure"]


def quality(suite: str) -> str:
    """The metric of a suite that measures how near samples are to the data.

    >>> quality("toy"), quality("digits")
    ('sliced_wasserstein', 'frechet')
    """
    return "sliced_wasserstein" if suite == "toy" else "frechet"


def quality_figure(suite: str, rows: Sequence[Row]) -> Picture:
    """Quality against steps of FM and the trained methods. Controls would hide them.

    Raises what `viz.quality_vs_steps` does.

    >>> rows = [{"method": "fm", "metric": "frechet", "nfe": n, "value": 9 / n} for n in (2, 4)]
    >>> quality_figure("digits", rows).axes[0].get_ylabel()
    'Fréchet distance'
    """
    measured = {row["metric"] for row in rows}
    others = ("accuracy",) if suite != "toy" else ("trajectory_error", "class_separation")
    shown = [quality(suite), *(name for name in others if name in measured)]
    return viz.quality_vs_steps([r for r in rows if r["method"] in ("fm", *TRAINED)], shown)
