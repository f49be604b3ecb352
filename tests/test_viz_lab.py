"""Figures of the lab: a clear difference is filled and an unclear one hollow, each stands at its
own value, and no text is cut off.
"""

import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
from matplotlib.text import Text

from cfm_lite import viz
from cfm_lite.errors import ConfigError
from cfm_lite.viz import Panel
from tests.drawn import texts_of


def difference(method, mean, low, high, clear):
    return SimpleNamespace(method=method, mean=mean, low=low, high=high, clear=clear)


CLEAR, HOLLOW = (
    difference("delta_fm", -0.3, -0.5, -0.1, True),
    difference("vecor", -0.2, -0.4, -0.05, False),
)
PANEL = Panel("Digits", "Fréchet distance minus FM's")
FIGURES = {
    "rows": lambda: viz.difference_rows(
        {
            PANEL: [("ΔFM", CLEAR), ("VeCoR", HOLLOW)],
            Panel("MNIST", "recall", "higher"): [("ΔFM", CLEAR)],
        }
    ),
    "curves": lambda: viz.difference_curves(
        {PANEL: {"delta_fm": {2: CLEAR, 50: CLEAR}, "vecor": {2: HOLLOW, 50: CLEAR}}}, xlabel="NFE"
    ),
    "curves, even": lambda: viz.difference_curves(
        {PANEL: {"vecor": {1.0: HOLLOW, 2.0: CLEAR}}}, xlabel="scale", log=False
    ),
    "scatter": lambda: viz.difference_scatter(
        {PANEL: [("weight 0.5", 1.5, CLEAR), ("weight 2", 7.0, HOLLOW)]}, xlabel="length"
    ),
}


def marks(figure):
    return [
        line
        for axes in figure.axes
        for line in axes.lines
        if line.get_marker() not in ("None", "", None)
    ]


@pytest.mark.parametrize("name", FIGURES)
def test_clear_differences_are_filled_and_the_others_hollow(name):
    for mark in marks(FIGURES[name]()):
        is_clear = -0.3 in (mark.get_xdata()[0], mark.get_ydata()[0])
        assert is_clear == (mark.get_markerfacecolor() != "white")


@pytest.mark.parametrize("name", FIGURES)
def test_every_text_lies_inside_the_canvas_and_every_axis_has_a_name(name):
    figure = FIGURES[name]()
    figure.canvas.draw()
    for text in texts_of(figure):
        box = text.get_window_extent()
        assert min(box.x0, box.y0, figure.bbox.x1 - box.x1, figure.bbox.y1 - box.y1) >= -1, (
            text.get_text()
        )
    assert all(axes.get_xlabel() for axes in figure.axes)


def test_rows_stand_at_their_means_with_their_intervals():
    axes = FIGURES["rows"]().axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ΔFM", "VeCoR"]
    assert [list(line.get_xdata()) for line in axes.lines[:4]] == [
        [-0.5, -0.1],
        [-0.3],
        [-0.4, -0.05],
        [-0.2],
    ]
    assert "better" in axes.get_xlabel().split("worse")[0]
    assert "worse" in FIGURES["rows"]().axes[1].get_xlabel().split("better")[0]


def test_rows_of_panels_with_equal_labels_name_them_once_and_marked_rows_have_a_band():
    rows = [("ΔFM", CLEAR), ("VeCoR", HOLLOW)]
    axes = viz.difference_rows(
        {PANEL: rows, Panel("MNIST", "recall", "higher"): rows}, marked=["VeCoR"]
    ).axes
    assert [axis.yaxis.get_tick_params()["labelleft"] for axis in axes] == [True, False]
    assert [len(axis.patches) for axis in axes] == [1, 1]


def test_labels_of_a_crowd_do_not_cover_each_other():
    crowd = [
        (f"weight {i}", 2.0, difference("dispersive", 0.001 * i, -0.1, 0.1, False))
        for i in range(10)
    ]
    figure = viz.difference_scatter({PANEL: crowd}, xlabel="length")
    figure.canvas.draw()
    boxes = sorted(
        (Text.get_window_extent(text) for text in figure.axes[0].texts), key=lambda box: box.y0
    )
    assert len(boxes) == 10
    assert all(low.y1 <= high.y0 + 1 for low, high in pairwise(boxes))


def test_the_place_of_a_block_without_curves_stays_empty():
    blocks = {
        PANEL: {"vecor": {2: CLEAR}},
        Panel("MNIST", "x"): {},
        Panel("Plane", "x", xlabel="width"): {"vecor": {32: CLEAR}},
    }
    axes = viz.difference_curves(blocks, xlabel="NFE", columns=2).axes
    assert [axis.get_xlabel() for axis in axes] == ["NFE", "width"]


def test_an_axis_is_squeezed_only_where_differences_are_large_beside_most_and_says_so():
    small, large = (
        {
            x: difference("vecor", mean, mean, mean, True)
            for x, mean in zip((1, 2, 4), (0.03, -0.04, top))
        }
        for top in (0.05, 20.0)
    )
    blocks = {PANEL: {"vecor": small}, PANEL._replace(xlabel="λ"): {"vecor": large}}
    plain, squeezed = viz.difference_curves(blocks, xlabel="K", squeeze=True).axes
    assert (plain.get_yscale(), squeezed.get_yscale()) == ("linear", "symlog")
    assert "logarithmic beyond ±0.1" in squeezed.get_ylabel()
    assert squeezed.get_ylim()[1] > 20
    assert viz.difference_curves(blocks, xlabel="K").axes[1].get_yscale() == "linear"


def test_curves_stand_at_their_settings():
    axes = FIGURES["curves"]().axes[0]
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["2", "50"]


def test_of_a_quantity_without_a_better_side_no_side_is_named():
    neither = Panel("Digits", "length of the features", good="")
    rows = viz.difference_rows({neither: [("a", CLEAR)]})
    curves = viz.difference_curves({neither: {"fm": {2.0: CLEAR}}}, xlabel="x")
    axes = (rows.axes[0], curves.axes[0])
    assert not any("better" in axis.get_xlabel() + axis.get_ylabel() for axis in axes)
    assert curves.axes[0].get_ylabel() == "length of the features"


ASKEW = Panel("Digits", "Fréchet distance", good="down")


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: viz.difference_rows({}), "blocks is empty"),
        (lambda: viz.difference_curves({}, xlabel="x"), "blocks is empty"),
        (lambda: viz.difference_scatter({}, xlabel="x"), "blocks is empty"),
        (lambda: viz.difference_rows({PANEL: []}), "no differences"),
        (
            lambda: viz.difference_rows({PANEL: [("a", difference("fm", math.nan, 0, 1, False))]}),
            "NaN",
        ),
        (lambda: viz.difference_scatter({PANEL: [("a", 0.0, CLEAR)]}, xlabel="x"), "not above 0"),
        (
            lambda: viz.difference_curves({PANEL: {"fm": {0.0: CLEAR, 2.0: CLEAR}}}, xlabel="x"),
            "the setting 0, which has no logarithm",
        ),
        (
            lambda: viz.difference_curves({PANEL: {"fm": {2.0: CLEAR}}}, xlabel="x", columns=0),
            "columns is 0",
        ),
        *(
            (build, "good is 'down'; it must be one of 'lower', 'higher'")
            for build in (
                lambda: viz.difference_rows({ASKEW: [("a", CLEAR)]}),
                lambda: viz.difference_curves({ASKEW: {"fm": {2.0: CLEAR}}}, xlabel="x"),
                lambda: viz.difference_scatter({ASKEW: [("a", 1.0, CLEAR)]}, xlabel="x"),
            )
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(build, words):
    with pytest.raises(ConfigError, match=words):
        build()
