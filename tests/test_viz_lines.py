"""Figures of errors: what each line and colour must mean, what is refused, and that nothing is cut
off, covered or too small.
"""

import functools
import itertools

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.text import Text

from cfm_lite import viz
from cfm_lite.course import figures
from cfm_lite.errors import ConfigError
from cfm_lite.viz import style

LIMITS = (-3.0, 3.0, -3.0, 3.0)
STEPS = [4, 8, 16, 32, 64]
GROWTH = np.exp(np.random.default_rng(0).normal(size=(25, 25)))
NAMES = {"xlabel": "network calls", "ylabel": "distance to the true end"}

BUILDERS = {
    "orders": lambda: viz.curves(
        {
            name: (STEPS, [1.0 / n**order for n in STEPS])
            for name, order in (
                ("Euler: slope 1.0", 1),
                ("Heun: slope 2.0", 2),
                ("RK4: slope 4.0", 4),
            )
        },
        xscale="log2",
        yscale="log",
        title="Higher order, steeper line",
        **NAMES,
    ),
    "methods": lambda: viz.curves(
        {
            "exact": ([0, 1], [0.7, 0.9]),
            "delta_fm": ([0, 1], [1.0, 1.4]),
            "width 4": ([0, 1], [0.6, 0.8]),
        },
        level=(1, "as long as the targets"),
        **NAMES,
    ),
    "factors": lambda: figures.plane_maps(
        {"start": GROWTH, "later": GROWTH**2},
        LIMITS,
        "growth until $t$ = 1",
        factor=True,
        high=10,
        data=[[0.0, 1.0]],
    ),
    "distances": lambda: figures.plane_maps({"all": GROWTH}, LIMITS, "distance"),
}
every_figure = pytest.mark.parametrize("name", list(BUILDERS))


@functools.cache
def figure(name: str) -> viz.Picture:
    picture = BUILDERS[name]()
    picture.canvas.draw()  # the layout is made when drawn
    return picture


def texts(name: str) -> list[Text]:
    drawn = []
    draw = Text.draw
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Text, "draw", lambda text, renderer: (drawn.append(text), draw(text, renderer))[1]
        )
        figure(name).canvas.draw()
    return list(
        {
            id(text): text for text in drawn if text.get_visible() and text.get_text().strip()
        }.values()
    )


@every_figure
def test_texts_are_inside_the_canvas_apart_and_large_enough(name: str) -> None:
    width, height = figure(name).bbox.size
    found = texts(name)
    assert len(found) >= 5
    for text in found:
        box = text.get_window_extent()
        assert min(box.x0, box.y0) >= 0
        assert box.x1 <= width
        assert box.y1 <= height
        assert text.get_fontsize() >= 9
    for (one, a), (other, b) in itertools.combinations(
        [(text.get_text(), text.get_window_extent()) for text in found], 2
    ):
        apart = a.x1 <= b.x0 + 1 or b.x1 <= a.x0 + 1 or a.y1 <= b.y0 + 1 or b.y1 <= a.y0 + 1
        assert apart, f"{one!r} covers {other!r}"


@every_figure
def test_axes_have_names(name: str) -> None:
    assert all(axes.get_xlabel() or axes.get_position().width < 0.05 for axes in figure(name).axes)
    assert any(axes.get_ylabel() for axes in figure(name).axes)


def test_curves_give_one_line_per_name_and_a_legend_outside_the_data() -> None:
    picture = figure("orders")
    (panel,) = picture.axes
    assert [line.get_label() for line in panel.lines] == [
        "Euler: slope 1.0",
        "Heun: slope 2.0",
        "RK4: slope 4.0",
    ]
    assert np.allclose(panel.lines[1].get_ydata(), [1 / n**2 for n in STEPS])
    assert picture.legends[0].get_window_extent().x0 > panel.get_window_extent().x1


def test_a_base_of_two_has_a_tick_for_every_count() -> None:
    (panel,) = figure("orders").axes
    assert [text.get_text() for text in panel.get_xticklabels()] == ["4", "8", "16", "32", "64"]
    assert (panel.get_xscale(), panel.get_yscale()) == ("log", "log")


def test_methods_keep_their_colours_and_the_truth_is_black() -> None:
    truth, method, other, level = figure("methods").axes[0].lines
    assert (truth.get_color(), truth.get_marker()) == (style.TRUTH, "")
    assert (method.get_color(), method.get_marker()) == (style.METHOD_COLORS["delta_fm"], "s")
    assert method.get_label() == "ΔFM"
    assert to_hex(other.get_color()) not in {
        to_hex(color) for color in style.METHOD_COLORS.values()
    }
    assert np.allclose(level.get_ydata(), 1)


def test_settings_run_from_pale_to_dark() -> None:
    lines = figure("orders").axes[0].lines
    brightness = [sum(line.get_color()[:3]) for line in lines]
    assert brightness == sorted(brightness, reverse=True)
    assert len({line.get_marker() for line in lines}) == 3


def test_maps_share_limits_and_colours() -> None:
    *planes, bar = figure("factors").axes
    assert len(planes) == 2
    assert all(
        (*axes.get_xlim(), *axes.get_ylim()) == LIMITS and axes.get_aspect() == 1 for axes in planes
    )
    assert {axes.images[0].get_clim() for axes in planes} == {(-1.0, 1.0)}
    assert [text.get_text() for text in bar.get_yticklabels()] == [
        "×0.1",
        "×0.32",
        "×1",
        "×3.2",
        "×10",
    ]
    assert bar.get_ylabel() == "growth until $t$ = 1"


def test_a_factor_of_one_is_neutral_and_larger_ones_are_vermilion() -> None:
    picture = figures.plane_maps({"all": [[1.0, 10.0], [0.1, 1.0]]}, LIMITS, "growth", factor=True)
    image = picture.axes[0].images[0]
    colors = [to_hex(image.cmap(image.norm(value))) for value in (-1.0, 0.0, 1.0)]
    assert colors[0].lower() == style.DATA.lower()
    assert colors[1] == to_hex(style.DIVERGING(0.5))
    assert colors[2].lower() == style.REPEL.lower()


def test_without_factor_the_colours_begin_at_zero() -> None:
    low, high = figure("distances").axes[0].images[0].get_clim()
    assert low == 0
    assert high == pytest.approx(GROWTH.max())


def test_tensors_are_welcome() -> None:
    (line,) = (
        viz.curves({"a": (torch.linspace(0, 1, 5), [torch.tensor(1.0)] * 5)}, **NAMES).axes[0].lines
    )
    assert np.allclose(line.get_ydata(), 1)


@pytest.mark.parametrize(
    ("lines", "settings", "message"),
    [
        ({}, {}, "without entries"),
        ([1, 2], {}, "pass a dict"),
        ({"a": [1.0, 2.0, 3.0]}, {}, "a pair"),
        ({"a": ([1.0, 2.0], [1.0])}, {}, "one y for every x"),
        ({"a": ([1.0, 2.0], [1.0, float("nan")])}, {}, "NaN"),
        ({"a": ([1.0, 2.0], [0.0, 1.0])}, {"yscale": "log"}, "above 0"),
        ({"a": ([0.0, 2.0], [1.0, 1.0])}, {"xscale": "log2"}, "above 0"),
        ({"a": ([1.0, 2.0], [1.0, 1.0])}, {"yscale": "loglog"}, "scale"),
    ],
)
def test_curves_refuse_what_they_cannot_draw(lines: object, settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        viz.curves(lines, **NAMES, **settings)


@pytest.mark.parametrize(
    ("maps", "settings", "message"),
    [
        ({}, {}, "without entries"),
        ({"a": [1.0, 2.0]}, {}, "shape"),
        ({"a": [[1.0, float("inf")]]}, {}, "infinite"),
        ({"a": [[1.0, -2.0]]}, {}, "at least 0"),
        ({"a": [[1.0, 0.0]]}, {"factor": True}, "above 0"),
        ({"a": [[1.0, 2.0]]}, {"factor": True, "high": 1.0}, "high"),
    ],
)
def test_plane_maps_refuse_what_they_cannot_draw(
    maps: object, settings: dict, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        figures.plane_maps(maps, LIMITS, "growth", **settings)


def test_kinds_without_an_order_share_no_ramp() -> None:
    lines = {name: ([0, 1], [k, k + 1]) for k, name in enumerate(("Euler", "Heun", "RK4"), 1)}
    seen = {}
    for ordered in (True, False):
        (axes,) = viz.curves(lines, ordered=ordered, **NAMES).axes
        seen[ordered] = [to_hex(line.get_color()) for line in axes.get_lines()]
    assert len(set(seen[False])) == 3
    assert not set(seen[False]) & {*seen[True], *style.METHOD_COLORS.values()}
