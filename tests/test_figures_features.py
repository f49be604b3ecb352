"""Figures of hidden features: the rows stand in their classes, one scale serves all panels, and no
winner is filled in without cause.
"""

import functools
import itertools
import math
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from matplotlib.text import Text

from cfm_lite import losses, viz
from cfm_lite.course import figures
from cfm_lite.errors import ConfigError
from tests.drawn import texts_of

LABELS = torch.arange(30) % 10


def features(seed: int = 0, rows: int = 30, width: int = 6) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def cosines(h: torch.Tensor) -> torch.Tensor:
    unit = torch.nn.functional.normalize(h)
    return unit @ unit.T


def difference(method: str, mean: float, low: float, high: float) -> SimpleNamespace:
    return SimpleNamespace(method=method, mean=mean, low=low, high=high)


GROUPS = {
    "hinge": [
        difference("dispersive", -0.3, -0.5, -0.1),
        difference("a contrastive arm", 0.2, -0.1, 0.5),
    ],
    "covariance": [
        difference("dispersive", 0.4, 0.1, 0.8),
        difference("a contrastive arm", 0.1, math.nan, math.nan),
    ],
}
LINES = {
    "mean length": {"fm": ((1, 2, 3), (15.0, 14, 13)), "dispersive": ((1, 2, 3), (40.0, 33, 31))},
    "mean cosine": {
        "fm": ((1, 2, 3), (0.2, -0.1, 0.3)),
        "dispersive": ((1, 2, 3), (0.3, 0.2, 0.3)),
    },
}
RUNS = {
    "hinge": torch.stack([features(1, 8, 2), features(2, 8, 2)]),
    "InfoNCE": torch.stack([features(1, 8, 2), 2 * features(1, 8, 2)]),
}
BUILDERS: dict[str, Callable[[], viz.Picture]] = {
    "similarity_maps": lambda: figures.similarity_maps(
        {"fm": cosines(features()), "dispersive": cosines(features(1))}, LABELS
    ),
    "similarity_maps, positive": lambda: figures.similarity_maps(
        {"fm": cosines(features()).abs()}, LABELS, label="nearness"
    ),
    "feature_maps": lambda: figures.feature_maps(
        {"fm": features(0, 30, 2), "dispersive": 50 * features(1, 30, 2)}, LABELS
    ),
    "feature_maps, five": lambda: figures.feature_maps(
        {f"network {i}": features(i, 30, 2) for i in range(5)}, LABELS
    ),
    "feature_maps, times": lambda: figures.feature_maps(
        {"fm": features(0, 30, 2)}, LABELS, meaning="time t, in tenths", ordered=True
    ),
    "spreading": lambda: figures.spreading(RUNS, circle=1.0),
    "profiles": lambda: figures.profiles(LINES, xlabel="after block"),
    "profiles, curves": lambda: figures.profiles(
        {"norm": {"fm": (np.arange(50), np.arange(50.0))}}, xlabel="step", whole=False
    ),
    "profiles, smooth": lambda: figures.profiles(
        {"loss": {"fm": (np.arange(50), np.arange(50.0)), "my run": (np.arange(50), np.ones(50))}},
        xlabel="step",
        whole=False,
        smooth=5,
    ),
    "paired_differences": lambda: figures.paired_differences(
        GROUPS, xlabel="Fréchet distance minus that of FM"
    ),
}
every_figure = pytest.mark.parametrize("name", list(BUILDERS))


@functools.cache
def figure(name: str) -> viz.Picture:
    picture = BUILDERS[name]()
    picture.canvas.draw()
    return picture


@functools.cache
def texts(name: str) -> list[Text]:
    """The texts that really reach the canvas, tick labels included."""
    return texts_of(figure(name))


@every_figure
def test_text_is_readable_and_inside_the_canvas(name: str) -> None:
    width, height = figure(name).bbox.size
    for text in texts(name):
        box = text.get_window_extent()
        assert text.get_fontsize() >= 9, text.get_text()
        inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
        assert inside, text.get_text()
    assert figure(name).get_figwidth() <= 11


@every_figure
def test_no_two_texts_overlap(name: str) -> None:
    boxes = [
        (text.get_text(), text.get_window_extent())
        for text in texts(name)
        if text.get_rotation() in (0, 90)
    ]
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        assert a.x1 <= b.x0 + 1 or b.x1 <= a.x0 + 1 or a.y1 <= b.y0 + 1 or b.y1 <= a.y0 + 1, (
            f"{one!r} covers {other!r}"
        )


def test_similarity_maps_sort_the_rows_by_class_and_share_one_scale() -> None:
    matrix = cosines(features())
    picture = figures.similarity_maps({"fm": matrix, "dispersive": matrix}, LABELS)
    first, second = (axes.collections[0] for axes in picture.axes[:2])
    order = np.argsort(LABELS.numpy(), kind="stable")
    assert np.allclose(
        np.asarray(first.get_array()).reshape(30, 30), matrix.numpy()[np.ix_(order, order)]
    )
    assert first.get_clim() == second.get_clim() == (-1, 1)
    assert [tick.get_text() for tick in picture.axes[0].get_xticklabels()] == [
        str(c) for c in range(10)
    ]
    assert [axes.get_title(loc="left") for axes in picture.axes[:2]] == ["FM", "Dispersive"]


def test_a_map_without_negative_values_starts_at_zero() -> None:
    assert figure("similarity_maps, positive").axes[0].collections[0].get_clim() == (0, 1)


def test_feature_maps_draw_every_sample_once_in_a_square() -> None:
    for axes in figure("feature_maps").axes:
        assert sum(len(cloud.get_offsets()) for cloud in axes.collections) == 30
        assert len(axes.collections) == 10
        assert axes.get_aspect() == 1.0
        assert np.ptp(axes.get_xlim()) == pytest.approx(np.ptp(axes.get_ylim()))
    assert len(figure("feature_maps, five").axes) == 5


def test_ordered_labels_run_through_viridis() -> None:
    colors = [
        tuple(cloud.get_facecolor()[0])
        for cloud in figure("feature_maps, times").axes[0].collections
    ]
    assert colors == [colormaps["viridis"](k / 10) for k in range(10)]


def test_spreading_runs_from_grey_to_purple_over_shared_limits() -> None:
    panels = figure("spreading").axes
    assert len({(*axes.get_xlim(), *axes.get_ylim()) for axes in panels}) == 1
    for axes, states in zip(panels, RUNS.values()):
        start, end = axes.collections
        assert np.allclose(start.get_offsets(), states[0])
        assert np.allclose(end.get_offsets(), states[-1])
        assert tuple(start.get_facecolor()[0][:3]) == to_rgb(viz.NOISE)
        assert tuple(end.get_facecolor()[0][:3]) == to_rgb(viz.MODEL)
        assert len(axes.lines) == states.shape[1] + 1  # a trail per point, and the circle


def test_profiles_have_a_panel_per_quantity_and_a_colour_per_network() -> None:
    picture = figure("profiles")
    assert [axes.get_ylabel() for axes in picture.axes] == list(LINES)
    for axes, group in zip(picture.axes, LINES.values()):
        assert [line.get_color() for line in axes.lines] == [
            viz.METHOD_COLORS[name] for name in group
        ]
        assert axes.get_ylim()[0] <= 0
        assert [tick for tick in axes.get_xticks()] == [1, 2, 3]


def test_a_running_mean_lies_over_the_pale_values() -> None:
    raw, mean, _, flat = figure("profiles, smooth").axes[0].lines
    assert raw.get_alpha() < 0.5
    assert mean.get_color() != flat.get_color()
    assert np.allclose(
        mean.get_ydata()[2:-2], np.arange(2, 48)
    )  # the mean of a straight line is the line
    assert np.allclose(flat.get_ydata(), 1)


def test_only_an_interval_without_zero_gets_a_filled_dot() -> None:
    (axes,) = figure("paired_differences").axes
    filled = {}
    for line in axes.lines:
        if line.get_marker() not in ("None", "") and len(line.get_xdata()) == 1:
            filled[round(float(line.get_xdata()[0]), 2)] = line.get_markerfacecolor() != "white"
    assert filled == {-0.3: True, 0.2: False, 0.4: True, 0.1: False}
    assert "better" in axes.get_title(loc="left")
    turned = figures.paired_differences(GROUPS, xlabel="accuracy", good="higher").axes[0]
    assert "worse" in turned.get_title(loc="left")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: figures.similarity_maps({}, LABELS), "without entries"),
        (lambda: figures.similarity_maps({"fm": torch.full((30, 30), math.nan)}, LABELS), "NaN"),
        (lambda: figures.similarity_maps({"fm": torch.zeros(30, 4)}, LABELS), "shape"),
        (
            lambda: figures.similarity_maps({"fm": torch.eye(30), "other": torch.eye(20)}, LABELS),
            "same rows",
        ),
        (lambda: figures.similarity_maps({"fm": torch.eye(30)}, LABELS[:3]), "labels"),
        (lambda: figures.similarity_maps({"fm": torch.eye(30)}, LABELS, limit=0), "limit"),
        (lambda: figures.feature_maps({"fm": features()}, LABELS), "shape"),
        (lambda: figures.feature_maps({"fm": features(0, 30, 2)}, LABELS + 5), "numeral"),
        (lambda: figures.spreading({"hinge": features()}), "shape"),
        (lambda: figures.spreading({}), "without entries"),
        (lambda: figures.profiles({}, xlabel="block"), "no quantity"),
        (
            lambda: figures.profiles({"norm": {"fm": ((1, 2), (1.0,))}}, xlabel="block"),
            "one y for every x",
        ),
        (lambda: figures.profiles(LINES, xlabel="block", smooth=0), "smooth"),
        (lambda: figures.paired_differences({"hinge": []}, xlabel="x"), "no rows"),
        (
            lambda: figures.paired_differences(
                {"hinge": [difference("fm", math.nan, 0, 1)]}, xlabel="x"
            ),
            "NaN",
        ),
        (lambda: figures.paired_differences(GROUPS, xlabel="x", good="left"), "good"),
    ],
)
def test_what_cannot_be_drawn_is_refused(build: Callable[[], viz.Picture], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()


def test_the_arrays_and_the_global_state_stay_as_they_were() -> None:
    matrix = cosines(features())
    before, state = matrix.clone(), torch.get_rng_state()
    viz.to_png(figures.similarity_maps({"fm": matrix}, LABELS))
    assert torch.equal(matrix, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert losses.dispersive(features()) < 0
