"""What precision and recall count: points that lie within the neighbourhoods of other points.

A point's neighbourhood is the disc that reaches to its k-th nearest neighbour of its own kind
(Kynkäänniemi et al. 2019, arXiv:1904.06991). Real data are blue, samples purple dots; what lies in
no disc of the other kind is a vermilion cross.
"""

from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.patches import Circle

from cfm_lite import metrics
from cfm_lite.viz import artists
from cfm_lite.viz.artists import Limits
from cfm_lite.viz.style import DATA, MODEL, REPEL, Picture, as_array, styled

__all__ = ["neighbourhoods"]


@styled
def neighbourhoods(real: Any, fake: Any, k: int = 3, *, limits: Limits | None = None) -> Picture:
    """Two planes of points `real` (N, 2) and `fake` (M, 2): samples over the discs of real points,
    and the other way round.

    Left, the share of samples inside a disc is the precision; right, that of real points the
    recall. Raises ConfigError for NaN, other shapes, and sets of k points or fewer.
    """
    real, fake = as_array("real", real, None, 2), as_array("fake", fake, None, 2)
    shares = metrics.precision_recall(torch.as_tensor(real), torch.as_tensor(fake), k)
    limits = limits or artists.square_limits(real, fake)
    figure, axes = artists.squares(1, 2, limits, side=3.6, gap=0.4, right=2.25)
    sides = (
        (real, DATA, fake, MODEL, "Precision", "samples"),
        (fake, MODEL, real, DATA, "Recall", "real points"),
    )
    for panel, share, (centres, own, points, color, name, what) in zip(axes[0], shares, sides):
        _discs(panel, centres, own, k)
        inside = _inside(points, centres, k)
        artists.points(panel, centres, color=own, size=7, alpha=0.55)
        artists.points(
            panel,
            points[inside],
            color=color,
            size=26,
            rim=0.5,
            zorder=3,
        )
        artists.points(
            panel,
            points[~inside],
            color=REPEL,
            size=34,
            marker="X",
            rim=0.5,
            zorder=4,
        )
        panel.set_title(
            f"{name}: {100 * float(share):.0f} % of the {what}", loc="left", fontsize=10.5
        )
    entries = {
        "real, with its disc": artists.legend_entry(DATA),
        "sample, with its disc": artists.legend_entry(MODEL),
        "in no disc of the\nother kind": artists.legend_entry(REPEL, "X", markersize=7),
    }
    artists.side_legend(axes[0, 1], entries)
    return figure


def _inside(points: np.ndarray, centres: np.ndarray, k: int) -> np.ndarray:
    """Which of `points` (n, 2) lie in a disc of `centres`, (n,) bool."""
    radii = metrics.neighbour_radii(torch.as_tensor(centres), k).numpy()
    return (np.linalg.norm(points[:, None] - centres[None], axis=-1) <= radii).any(axis=1)


def _discs(panel: Axes, centres: np.ndarray, color: str, k: int) -> None:
    radii = metrics.neighbour_radii(torch.as_tensor(centres), k).tolist()
    discs = [Circle((x, y), radius) for (x, y), radius in zip(centres, radii)]
    panel.add_collection(
        PatchCollection(discs, facecolor=color, alpha=0.12, edgecolor="none", zorder=1)
    )
