"""What the pictures of paths and marginals must show, and what they refuse; readable text inside
the canvas, as in test_viz.py.
"""

import functools
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection
from matplotlib.quiver import Quiver

from cfm_lite import theory, viz
from cfm_lite.course import figures
from cfm_lite.data import toy
from cfm_lite.errors import ConfigError
from cfm_lite.paths import COSINE, LINEAR, VP
from tests import test_viz

LIMITS = (-3.5, 3.5, -3.5, 3.5)
TS = torch.linspace(0, 1, 5)
LINE = theory.GaussianMixture([0.3, 0.7], [[-2.0], [1.5]], [0.3, 0.3])


def log_density(x: torch.Tensor, t: float) -> torch.Tensor:
    return toy.mixture("two_classes").log_prob(x, torch.full((len(x),), t))


def log_density_on_a_line(x: torch.Tensor, t: float) -> torch.Tensor:
    return LINE.log_prob(x, torch.full((len(x),), t))


@functools.cache
def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(60, 2, generator=generator), toy.two_classes(60, generator=generator)[0]


def states() -> torch.Tensor:
    x0, x1 = pairs()
    return torch.stack([LINEAR.interpolate(x0, x1, t.expand(60))[0] for t in TS])


def size(x: torch.Tensor) -> torch.Tensor:
    return x.norm(dim=1)


BUILDERS: dict[str, Callable[[], viz.Picture]] = {
    "path_coefficients": lambda: figures.path_coefficients([LINEAR, COSINE, VP]),
    "snapshots": lambda: figures.snapshots(states(), TS, density=log_density),
    "snapshots, plain": lambda: figures.snapshots(states(), TS, at=(0, 1), followed=0),
    "conditional_velocities": lambda: figures.conditional_velocities(
        *pairs(), pairs()[1] - pairs()[0], [0.2, 0.0], 0.5, exact=[1.0, 0.5], data=pairs()[1]
    ),
    "spacetime": lambda: figures.spacetime(
        {"straight lines": states()[..., 0], "others": states()[..., 1]}, TS, density=log_density_on_a_line, shown=7
    ),
    "scalar_maps": lambda: figures.scalar_maps(
        {"$t$ = 0": size, "$t$ = 1": size}, LIMITS, label="distance from 0,\nunits of $x$", n=31, states=states(),
        densities={"$t$ = 0": lambda x: log_density(x, 0.0), "$t$ = 1": lambda x: log_density(x, 1.0)},
    ),
    "scalar_maps, plain": lambda: figures.scalar_maps({"one": size}, LIMITS, label="distance", n=11),
}  # fmt: skip
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
    legends = [*picture.legends, *(axes.get_legend() for axes in picture.axes if axes.get_legend())]
    for legend, axes in itertools.product(legends, picture.axes):
        assert not legend.get_window_extent().overlaps(axes.get_window_extent().padded(-2))


@pytest.mark.parametrize("name", ["snapshots", "conditional_velocities", "scalar_maps"])
def test_planes_are_square_and_panels_of_places_share_their_limits(name: str) -> None:
    planes = test_viz.planes(figure(name))
    assert len(planes) == {"snapshots": 5, "conditional_velocities": 2, "scalar_maps": 2}[name]
    if name != "conditional_velocities":  # there the second plane holds velocities
        assert len({axes.get_xlim() for axes in planes}) == 1


def test_the_coefficients_are_drawn_in_the_colours_of_data_and_noise_with_time_named() -> None:
    axes = figure("path_coefficients").axes
    assert len(axes) == 6
    for panel in axes[:3]:
        assert [line.get_color() for line in panel.lines] == [viz.DATA, viz.NOISE]
    assert all("time" in panel.get_xlabel() for panel in axes[3:])
    assert axes[3].lines[1].get_ydata() == pytest.approx(
        np.full(501, -1.0)
    )  # d_sigma of the linear path


def test_snapshots_turn_from_grey_to_blue_and_trace_the_followed() -> None:
    axes = figure("snapshots").axes
    first, last = (panel.collections[0].get_facecolor()[0, :3] for panel in (axes[0], axes[-1]))
    assert np.allclose(first, np.array([0x7F] * 3) / 255)
    assert np.allclose(last, np.array([0x00, 0x72, 0xB2]) / 255)
    traced = [sum(type(artist) is LineCollection for artist in panel.collections) for panel in axes]
    assert traced == [0, 1, 1, 1, 1]
    assert "noise" in axes[0].get_title(loc="left")
    assert "data" in axes[-1].get_title(loc="left")


def test_the_mean_arrow_is_the_mean_of_the_velocities_in_both_planes() -> None:
    x0, x1 = pairs()
    for panel in test_viz.planes(figure("conditional_velocities")):
        (arrow,) = panel.findobj(Quiver)
        assert [arrow.U[0], arrow.V[0]] == pytest.approx((x1 - x0).double().mean(0).tolist())


def test_spacetime_draws_at_most_what_is_shown_and_every_column_reaches_its_maximum() -> None:
    for panel in figure("spacetime").axes:
        assert sum(len(line.get_xdata()) == len(TS) for line in panel.lines) == 7
        (shade,) = panel.images
        assert np.allclose(shade.get_array().max(axis=0), 1)


def test_scalar_maps_share_one_scale_from_zero_and_are_white_where_nothing_is() -> None:
    images = [axes.images[0] for axes in test_viz.planes(figure("scalar_maps"))]
    (limits,) = {image.get_clim() for image in images}
    assert limits[0] == 0
    assert [bool(np.isnan(np.ma.filled(image.get_array(), np.nan)).any()) for image in images] == [
        True,
        True,
    ]
    assert not np.isnan(figure("scalar_maps, plain").axes[0].images[0].get_array()).any()


BAD = {
    "no path": (lambda: figures.path_coefficients([]), "list of Paths"),
    "a name of a path": (lambda: figures.path_coefficients(["linear"]), "list of Paths"),  # type: ignore[list-item]
    "times that do not fit": (lambda: figures.snapshots(states(), TS[:3]), "3 times for 5 states"),
    "a time at which nothing is known": (lambda: figures.snapshots(states(), TS, at=(0, 0.3)), r"at holds \[0.3\]"),
    "NaN": (lambda: figures.snapshots(states() * math.nan, TS), "NaN"),
    "points on a line": (lambda: figures.snapshots(states()[..., :1], TS), "must be"),
    "velocities that do not fit": (lambda: figures.conditional_velocities(*pairs(), pairs()[0][:3], [0, 0], 0.5), "u has shape"),
    "a place in three dimensions": (lambda: figures.conditional_velocities(*pairs(), pairs()[0], [0, 0, 0], 0.5), "place"),
    "a late time": (lambda: figures.conditional_velocities(*pairs(), pairs()[0], [0, 0], 1.5), "t is 1.5"),
    "no bundles": (lambda: figures.spacetime({}, TS), "pass a dict"),
    "a bundle of other times": (lambda: figures.spacetime({"a": torch.zeros(3, 2)}, TS), "must be"),
    "no maps": (lambda: figures.scalar_maps({}, LIMITS, label="a"), "pass a dict"),
    "densities of other maps": (lambda: figures.scalar_maps({"a": size}, LIMITS, label="a", densities={"b": size}), "own density"),
    "signed numbers": (lambda: figures.scalar_maps({"a": lambda x: x[:, 0]}, LIMITS, label="a", n=11), "at least 0"),
    "no square": (lambda: figures.scalar_maps({"a": size}, (0, 1, 0, 2), label="a"), "square"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(BAD))
def test_bad_input_is_refused_with_what_was_seen(name: str) -> None:
    call, message = BAD[name]
    with pytest.raises(ConfigError, match=message):
        call()
