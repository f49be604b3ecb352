"""What the figures of repulsion must show: bottoms that move away, triangles that close, gaps that
are the gaps, and readable text.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.quiver import Quiver

from cfm_lite import viz
from cfm_lite.course import figures
from cfm_lite.errors import ConfigError
from tests.drawn import texts_of

U, WRONG = [[2.0, 1.0]], [[-1.0, 0.5]]
LIMITS = (-3.5, 3.5, -3.5, 3.5)
TS = np.linspace(0, 1, 9)


def triple(seed: int = 0, n: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, u, u_neg = np.random.default_rng(seed).normal(size=(3, n, 2))
    return x, u, u_neg


def heights(gap: float) -> torch.Tensor:
    noise = torch.randn(2, 1, 30, generator=torch.Generator().manual_seed(0)).expand(2, len(TS), 30)
    return (
        noise
        - noise.mean(2, keepdim=True)
        + gap * torch.as_tensor(TS)[None, :, None] * torch.tensor([0.0, 1.0])[:, None, None]
    )


TABLE = {
    "crop_resize": {"velocity": 1.5, "latent": 0.4, "image": 0.5},
    "channel_shuffle": {"velocity": 3.0, "latent": 1.5},
}
BUILDERS = {
    "loss_bowls": lambda: figures.loss_bowls(U, WRONG, (0, 0.35, 0.6, 1)),
    "loss_bowls, one": lambda: figures.loss_bowls(torch.randn(20, 2), torch.randn(20, 2), (0.35,)),
    "attract_repel": lambda: figures.attract_repel(
        {"one pair": triple(), "mean": triple(1)},
        0.35,
        limits=LIMITS,
        data=triple(2)[0],
        others=triple(3)[0],
        mean=[0.4, 0.0],
        mirror=True,
    ),
    "attract_repel, one": lambda: figures.attract_repel(
        {"one pair": triple()}, 0.05, limits=LIMITS
    ),
    "class_paths": lambda: figures.class_paths(
        {"fm": heights(1.0), "delta_fm": heights(2.5), "truth": heights(2.8)}, TS
    ),
    "class_paths, one": lambda: figures.class_paths(
        {"a field with a name": heights(1.0)}, TS, shown=3
    ),
    "negative_distances": lambda: figures.negative_distances(
        TABLE, reference={"another pair (ΔFM)": 4.2}
    ),
    "negative_distances, one": lambda: figures.negative_distances({"cutmix": {"latent": 0.3}}),
    "channel_stems": lambda: figures.channel_stems(
        {"fm": [1, 0.3, -0.5, 2], "vecor": [1.3, 0, -1.3, 2.9], "vecor_debiased": [1, 0.3, -0.5, 2]}
    ),
}
every_figure = pytest.mark.parametrize("name", list(BUILDERS))


def squares_of(picture: viz.Picture) -> list[Axes]:
    return [axes for axes in picture.axes if axes.get_aspect() == 1.0]


@every_figure
def test_texts_are_readable_inside_the_canvas_and_apart(name: str) -> None:
    picture = BUILDERS[name]()
    texts = texts_of(picture)
    width, height = picture.bbox.size
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    for text, box in boxes:
        assert min(box.x0, box.y0) >= 0, text
        assert box.x1 <= width, text
        assert box.y1 <= height, text
    assert not [text.get_text() for text in texts if text.get_fontsize() < 9]
    level = [
        (text.get_text(), text.get_window_extent())
        for text in texts
        if text.get_rotation() in (0, 90)
    ]
    for (one, a), (other, b) in itertools.combinations(level, 2):
        assert a.x1 <= b.x0 + 1 or b.x1 <= a.x0 + 1 or a.y1 <= b.y0 + 1 or b.y1 <= a.y0 + 1, (
            f"{one!r} covers {other!r}"
        )
    assert width <= 11.6 * viz.DPI


@every_figure
def test_every_axis_has_a_name(name: str) -> None:
    picture = BUILDERS[name]()
    places = {axes: axes.get_position() for axes in picture.axes}
    for box in places.values():
        assert any(
            axes.get_ylabel() for axes, place in places.items() if abs(place.y0 - box.y0) < 1e-6
        )
    assert all(axes.get_xlabel() for axes in picture.axes if not hasattr(axes, "_colorbar"))


def test_the_bottom_of_the_bowl_lies_on_the_line_from_wrong_through_right() -> None:
    picture = figures.loss_bowls(U, WRONG, (0, 0.35, 0.6, 1))
    for panel, weight in zip(squares_of(picture), (0, 0.35, 0.6)):
        best = (np.array(U[0]) - weight * np.array(WRONG[0])) / (1 - weight)
        purple = [line for line in panel.lines if line.get_color() == viz.MODEL]
        assert np.allclose(np.ravel(purple[0].get_data()), best)
        values = np.asarray(panel.images[0].get_array())
        row, column = np.unravel_index(values.argmin(), values.shape)
        left, right, bottom, _ = panel.images[0].get_extent()
        cell = (right - left) / (len(values) - 1)
        assert abs(left + column * cell - best[0]) <= cell
        assert abs(bottom + row * cell - best[1]) <= cell
    titles = [panel.get_title(loc="left") for panel in squares_of(picture)]
    assert titles[-1] == "λ = 1: no minimum"
    assert titles[0] == "λ = 0: minimum 0.00"


def test_the_bowls_agree_with_the_loss() -> None:
    from cfm_lite import losses

    u, u_neg = torch.randn(2, 50, 2, generator=torch.Generator().manual_seed(0))
    best = (u.mean(0) - 0.4 * u_neg.mean(0)) / 0.6
    lowest = losses.contrastive_flow_matching(best.expand(50, 2), u, u_neg, 0.4)
    title = squares_of(figures.loss_bowls(u, u_neg, [0.4]))[0].get_title(loc="left")
    assert title.endswith(f"minimum {float(lowest):.2f}".replace("-", "−"))


def test_bowls_share_limits_and_colours_centred_at_zero() -> None:
    panels = squares_of(figures.loss_bowls(U, WRONG, (0, 0.6)))
    assert len({panel.images[0].get_clim() for panel in panels}) == 1
    low, high = panels[0].images[0].get_clim()
    assert low == -high
    assert len({(*panel.get_xlim(), *panel.get_ylim()) for panel in panels}) == 1


def test_right_and_push_and_result_close_a_triangle() -> None:
    x, u, u_neg = triple()
    picture = figures.attract_repel({"pairs": (x, u, u_neg)}, 0.35, limits=LIMITS)
    by_color = {}
    for quiver in picture.findobj(Quiver):
        color = tuple(np.round(quiver.get_facecolor()[0][:3], 3))
        by_color[color] = quiver
    green, red, purple = (
        by_color[tuple(np.round(to_rgb(c), 3))] for c in (viz.ATTRACT, viz.REPEL, viz.MODEL)
    )
    assert len({q.scale for q in picture.findobj(Quiver)}) == 1
    arrow = lambda q: np.stack([q.U, q.V], 1) / q.scale  # noqa: E731
    assert np.allclose(arrow(green) + arrow(red), arrow(purple))
    assert np.allclose(red.XY, green.XY + arrow(green))
    assert np.allclose(arrow(purple) * purple.scale, (u - 0.35 * u_neg) / 0.65)


def test_the_mirror_and_the_mean_are_drawn_where_asked_for() -> None:
    def legend(**kwargs: object) -> list[str]:
        picture = figures.attract_repel({"pairs": triple()}, 0.35, limits=LIMITS, **kwargs)  # pyright: ignore[reportArgumentType]
        return [text.get_text() for text in squares_of(picture)[0].get_legend().get_texts()]

    assert "mean of all data" in legend(mean=[0, 0])
    assert "$a = b$" in legend(mirror=True)
    assert len(legend()) == 4


def test_the_gap_of_the_classes_stands_beside_them() -> None:
    picture = figures.class_paths({"fm": heights(1.0), "delta_fm": heights(2.5)}, TS)
    texts = [[text.get_text() for text in axes.texts if text.get_text()] for axes in picture.axes]
    assert texts == [["1.00"], ["2.50"]]
    assert picture.axes[0].get_ylim() == picture.axes[1].get_ylim()
    assert [axes.get_title(loc="left") for axes in picture.axes] == ["FM", "ΔFM"]


def test_the_distances_start_at_zero_and_show_every_number() -> None:
    (panel,) = figures.negative_distances(TABLE, reference={"another pair": 4.2}).axes
    shown = sorted(
        float(line.get_xdata()[0])
        for line in panel.lines
        if line.get_marker() not in ("None", "", None)
    )
    assert shown == sorted(value for places in TABLE.values() for value in places.values())
    assert panel.get_xlim()[0] == 0
    assert [text.get_text() for text in panel.get_yticklabels()] == [
        "crop resize",
        "channel shuffle",
    ]


def test_stems_start_at_the_mean_of_the_channels() -> None:
    picture = figures.channel_stems({"fm": [1, 0.3, -0.5, 2], "vecor": [1.6, 0.2, -1.4, 3.6]})
    for axes, values in zip(picture.axes, ([1, 0.3, -0.5, 2], [1.6, 0.2, -1.4, 3.6])):
        segments = np.array(axes.collections[0].get_segments())
        assert np.allclose(segments[:, 0, 1], np.mean(values))
        assert np.allclose(segments[:, 1, 1], values)
    assert picture.axes[0].get_ylim() == picture.axes[1].get_ylim()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: figures.loss_bowls(U, [[math.nan, 0]], (0.3,)), "NaN"),
        (lambda: figures.loss_bowls(U, [[0, 0], [1, 1]], (0.3,)), "shape"),
        (lambda: figures.loss_bowls(U, WRONG, (-0.1,)), "weight"),
        (lambda: figures.loss_bowls(U, WRONG, []), "empty"),
        (lambda: figures.attract_repel({"pairs": triple()}, 1.0, limits=LIMITS), "weight"),
        (lambda: figures.attract_repel({"pairs": triple()[:2]}, 0.3, limits=LIMITS), "must be"),
        (lambda: figures.attract_repel({}, 0.3, limits=LIMITS), "without entries"),
        (lambda: figures.attract_repel({"pairs": triple()}, 0.3, limits=(0, 1, 0, 2)), "square"),
        (
            lambda: figures.attract_repel(
                {"pairs": (*triple()[:2], triple(n=5)[2])}, 0.3, limits=LIMITS
            ),
            "shape",
        ),
        (lambda: figures.class_paths({"fm": heights(1.0)}, TS[:-1]), "shape"),
        (lambda: figures.class_paths({"fm": heights(1.0) * math.inf}, TS), "NaN"),
        (lambda: figures.class_paths({}, TS), "without entries"),
        (lambda: figures.negative_distances({"cutmix": {"pixel": 1.0}}), "pixel"),
        (lambda: figures.negative_distances({"cutmix": {"latent": -1.0}}), "cutmix in latent"),
        (lambda: figures.negative_distances({}), "without entries"),
        (lambda: figures.channel_stems({"fm": [1, 2], "vecor": [1, 2, 3]}), "shape"),
        (lambda: figures.channel_stems({}), "without entries"),
    ],
)
def test_bad_input_is_refused_by_name(build: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()  # pyright: ignore[reportCallIssue]
