"""What the pictures of targets and couplings must show, and what they refuse; readable text inside
the canvas, as in test_viz.py.
"""

import functools
import math
from collections.abc import Callable

import pytest
import torch
from matplotlib.collections import LineCollection

from cfm_lite import theory, viz
from cfm_lite.course import figures
from cfm_lite.errors import ConfigError
from tests import test_viz

LINE = theory.GaussianMixture([0.3, 0.7], [[-2.0], [1.5]], [0.3, 0.3])


@functools.cache
def draws(dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(200, dim, generator=generator), torch.randn(
        200, dim, generator=generator
    ) + 2


BUILDERS: dict[str, Callable[[], viz.Picture]] = {
    "regression_slice": lambda: figures.regression_slice(
        draws(1)[0][:, 0],
        draws(1)[1][:, 0],
        {"truth": LINE.velocity, "fm": lambda x, t: 0 * x, "a line": lambda x, t: x},
        0.5,
    ),
    "pairings": lambda: figures.pairings(
        {"independent": draws(2), "another": draws(2)[::-1]}, shown=20
    ),
    "pairings, one": lambda: figures.pairings({"independent": draws(2)}),
}
every_figure = pytest.mark.parametrize("name", list(BUILDERS))


@pytest.fixture(autouse=True)
def _these_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_viz, "figure", figure)
    test_viz.drawn_texts.cache_clear()


@functools.cache
def figure(name: str) -> viz.Picture:
    return BUILDERS[name]()


@every_figure
def test_text_is_readable_inside_the_canvas_and_does_not_overlap(name: str) -> None:
    test_viz.test_every_text_lies_inside_the_canvas(name)
    test_viz.test_no_text_is_smaller_than_nine_points(name)
    test_viz.test_no_two_texts_overlap(name)


@every_figure
def test_legends_stand_outside_the_data(name: str) -> None:
    picture = figure(name)
    picture.canvas.draw()
    (legend,) = picture.legends
    for axes in picture.axes:
        assert not legend.get_window_extent().overlaps(axes.get_window_extent().padded(-2))


def test_a_slice_shows_every_target_and_each_field_in_its_colour() -> None:
    (axes,) = figure("regression_slice").axes
    assert len(axes.collections[0].get_offsets()) == 200
    assert [line.get_color() for line in axes.lines] == [
        viz.TRUTH,
        viz.METHOD_COLORS["fm"],
        viz.MODEL,
    ]
    x = torch.as_tensor(axes.lines[0].get_xdata())[:, None]
    exact = LINE.velocity(x, torch.full((len(x),), 0.5, dtype=x.dtype))[:, 0]
    assert axes.lines[0].get_ydata() == pytest.approx(exact.tolist(), abs=1e-5)


def test_pairings_share_limits_draw_what_is_shown_and_measure_all() -> None:
    planes = test_viz.planes(figure("pairings"))
    assert len({axes.get_xlim() for axes in planes}) == 1
    for axes in planes:
        (lines,) = axes.findobj(LineCollection)
        assert len(lines.get_segments()) == 20
    x0, x1 = draws(2)
    wanted = f"{(x1 - x0).square().sum(1).mean():.2f}"
    assert any(wanted in text.get_text() for text in planes[0].texts)


BAD = {
    "no fields": (lambda: figures.regression_slice([0.0], [0.0], {}, 0.5), "pass a dict"),
    "targets that do not fit": (
        lambda: figures.regression_slice([0.0, 1.0], [0.0], {"truth": LINE.velocity}, 0.5),
        "u has shape",
    ),
    "NaN": (
        lambda: figures.regression_slice([0.0], [math.nan], {"truth": LINE.velocity}, 0.5),
        "NaN",
    ),
    "a late time": (
        lambda: figures.regression_slice([0.0], [0.0], {"truth": LINE.velocity}, 2),
        "t is 2",
    ),
    "no couplings": (lambda: figures.pairings({}), "pass a dict"),
    "pairs on a line": (lambda: figures.pairings({"a": draws(1)}), "must be"),
    "unequal pairs": (lambda: figures.pairings({"a": (draws(2)[0], draws(2)[1][:3])}), "must be"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_bad_input_is_refused_with_what_was_seen(name: str) -> None:
    call, message = BAD[name]
    with pytest.raises(ConfigError, match=message):
        call()
