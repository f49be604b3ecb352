"""The figure of a suite beside its rows, and the metric that it draws first."""

from collections.abc import Sequence

from cfm_lite import viz
from cfm_lite.lab.arms import TRAINED
from cfm_lite.lab.measures import Row
from cfm_lite.lab.statistics import Difference, differences
from cfm_lite.viz import Picture

__all__ = ["quality", "quality_figure"]


def quality(suite: str) -> str:
    """The metric of a suite that measures how near samples are to the data; for pictures of
    captions, the share in which everything is right.

    >>> quality("toy"), quality("digits"), quality("words")
    ('sliced_wasserstein', 'frechet', 'right_seen')
    """
    return {"toy": "sliced_wasserstein", "words": "right_seen"}.get(suite, "frechet")


def quality_figure(suite: str, rows: Sequence[Row]) -> Picture:
    """Quality against steps of FM and the trained methods. Controls would hide them.

    Raises what `viz.quality_vs_steps` does.

    >>> rows = [{"method": "fm", "metric": "frechet", "nfe": n, "value": 9 / n} for n in (2, 4)]
    >>> quality_figure("digits", rows).axes[0].get_ylabel()
    'Fréchet distance'
    """
    trained = [r for r in rows if r["method"] in ("fm", *TRAINED)]
    scales = sorted({row.get("guidance", 1.0) for row in rows})
    if suite == "words":  # sampled in one way
        return viz.method_bars(trained, "right_seen", "right_held_out")
    if len(scales) > 1:
        return _against_guidance(suite, trained, scales)
    measured = {row["metric"] for row in rows}
    others = ("accuracy",) if suite != "toy" else ("trajectory_error", "class_separation")
    shown = [quality(suite), *(name for name in others if name in measured)]
    return viz.quality_vs_steps(trained, shown)


def _against_guidance(suite: str, rows: Sequence[Row], scales: Sequence[float]) -> Picture:
    """The difference to FM of the same guidance scale, at the most evaluations."""
    curves: dict[str, dict[float, Difference]] = {}
    for scale in scales:
        mine = [row for row in rows if row["guidance"] == scale]
        for d in differences(mine, quality(suite), max(row["nfe"] for row in mine)):
            curves.setdefault(d.method, {})[scale] = d
    name = viz.METRICS[quality(suite)].name
    panel = viz.Panel(suite, f"{name}\nminus FM's", xlabel="guidance scale")
    return viz.difference_curves({panel: curves}, xlabel="", log=False)
