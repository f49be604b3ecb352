"""What every figure must keep: the palette, one scale for what is compared, readable text inside
the canvas, no global state.
"""

import ast
import functools
import io
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.quiver import Quiver
from matplotlib.text import Text

from cfm_lite import samplers, theory, viz
from cfm_lite.errors import ConfigError
from cfm_lite.viz import artists, style
from tests.drawn import texts_of

ROOT = Path(__file__).resolve().parents[1]
LIMITS = (-3.5, 3.5, -3.5, 3.5)
METHODS = (
    "fm",
    "fm_scaled",
    "fm_retargeted",
    "delta_fm",
    "delta_fm_debiased",
    "vecor_latent",
    "dispersive",
)


def mixture() -> theory.GaussianMixture:
    means = [[-1.5, 1.8], [2.3, 0.9], [2.3, -0.9], [-1.5, -1.8]]
    return theory.GaussianMixture([0.25] * 4, means, [0.35] * 4, labels=torch.tensor([0, 0, 1, 1]))


def velocity(method: str, weight: float = 0.35) -> viz.Velocity:
    exact = mixture()
    return lambda x, t: theory.optimal_velocity(
        exact, x, t, torch.zeros(len(x)).long(), method=method, weight=weight
    )


def density(t: float) -> viz.Density:
    exact = mixture()
    return lambda x: exact.log_prob(x, torch.full((len(x),), t), torch.zeros(len(x)).long())


def images(n: int, side: int = 8, channels: int = 1) -> torch.Tensor:
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(n)) * 2 - 1


def rows(seeds: int = 3, nfes: tuple[int, ...] = (2, 4, 8, 16, 50)) -> list[dict]:
    out = []
    for (i, method), nfe, seed in itertools.product(enumerate(METHODS), nfes, range(seeds)):
        place = {"method": method, "nfe": nfe, "seed": seed, "dataset": "digits"}
        out.append(
            place
            | {"metric": "frechet", "value": (3 + 60 / nfe) * (1 + 0.1 * i) * (1 + 0.05 * seed**2)}
        )  # lopsided over the seeds
        out.append(
            place | {"metric": "accuracy", "value": 0.95 - 0.5 / nfe - 0.01 * i - 0.005 * seed}
        )
        out.append(place | {"metric": "frechet_real", "value": 1.25})
    return [*out, {"method": "real", "metric": "accuracy", "value": 0.98}]


def more_samples_at(nfe: int) -> list[dict]:
    """Five times as many samples with `nfe` evaluations, and the lower floor that comes with them."""

    def floor(row):
        return 0.25 if row["metric"] == "frechet_real" and row["nfe"] == nfe else row["value"]

    return [
        {**row, "samples": 10_000 if row["nfe"] == nfe else 2000, "value": floor(row)}
        for row in rows()
        if "nfe" in row
    ]


def logs() -> dict[str, list[dict]]:
    def line(k):
        return {
            "step": 10 * k,
            "loss": torch.tensor(1 + math.exp(-k / 20)),
            "grad_norm": 1.0,
            "repulsion": 2.0 - 0.01 * k,
        }

    return {
        name: [line(k) for k in range(60)]
        for name in ("fm", "delta_fm", "vecor_latent", "dispersive")
    }


@functools.cache
def states() -> dict[str, torch.Tensor]:
    x0 = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    ts = torch.linspace(0, 1, 17)
    return {
        m: torch.stack(list(samplers.trajectory(velocity(m), x0, ts)))
        for m in ("vecor", "fm", "delta_fm")
    }


def data() -> torch.Tensor:
    return mixture().sample(200, generator=torch.Generator().manual_seed(0))[0]


def panel() -> Axes:
    return viz.squares(1, 1, LIMITS)[1][0, 0]


BUILDERS: dict[str, Callable[[], viz.Picture]] = {
    "fields_figure": lambda: viz.fields_figure(mixture(), paths=128, steps=24),
    "fields_figure, far away": lambda: viz.fields_figure(
        theory.GaussianMixture([1, 1], [[-140.0, 20], [-140, 40]], [1.0, 1.0]), label=1, paths=16, steps=8
    ),
    "velocity_fields": lambda: viz.velocity_fields(
        {"delta_fm": velocity("delta_fm"), "truth": velocity("fm"), "fm": velocity("fm"), "a network": velocity("vecor")},
        0.5, LIMITS, data=data(), density=density(0.5),
    ),
    "velocity_fields, one": lambda: viz.velocity_fields({"vecor": velocity("vecor")}, 0.5, LIMITS, data=data(), density=density(0.5)),
    "trajectories": lambda: viz.trajectories(states(), torch.linspace(0, 1, 17), data=data(), density=density(1.0)),
    "trajectories, drift": lambda: viz.trajectories(
        states(), torch.linspace(0, 1, 17), values={m: s.norm(dim=-1) for m, s in states().items()}, density=density(1.0)
    ),
    "point_samples": lambda: viz.point_samples({"real": data(), "delta_fm": states()["delta_fm"][-1]}, density=density(1.0)),
    "field_error": lambda: viz.field_error(
        {m: velocity(m) for m in ("fm", "delta_fm", "vecor")}, velocity("fm"), 0.5, LIMITS, n=31, density=density(0.5)
    ),
    "image_grid": lambda: viz.image_grid({m: images(10) for m in METHODS} | {"real": images(10)}, range(10)),
    "image_grid, colour": lambda: viz.image_grid({"a method with a long name": images(3, 32, 3)}, ["cat", "dog", "ship"]),
    "perturbation_gallery": lambda: viz.perturbation_gallery(images(3), {"crop_resize": images(3), "cutmix": -images(3)}),
    "perturbation_gallery, signed": lambda: viz.perturbation_gallery(3 * images(3), {"additive_noise": images(3)}, signed=True),
    "quality_vs_steps": lambda: viz.quality_vs_steps(rows()),
    "quality_vs_steps, one seed": lambda: viz.quality_vs_steps(rows(seeds=1)),
    "quality_vs_steps, samples": lambda: viz.quality_vs_steps(more_samples_at(50)),
    "method_bars": lambda: viz.method_bars(rows(), "accuracy", nfe=8),
    "training_curves": lambda: viz.training_curves(logs()),
    "training_curves, one": lambda: viz.training_curves(logs()["fm"], ["loss"]),
}  # fmt: skip
PLANES = [
    name
    for name in BUILDERS
    if name.split(",")[0]
    in ("fields_figure", "velocity_fields", "trajectories", "point_samples", "field_error")
]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Small tensors only: on a busy machine a second thread costs more than it gives."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    for cached in (figure, states, drawn_texts):
        cached.cache_clear()


@functools.cache
def figure(name: str) -> viz.Picture:
    return BUILDERS[name]()


every_figure = pytest.mark.parametrize("name", list(BUILDERS))


@functools.cache
def drawn_texts(name: str) -> list[Text]:
    """The texts of a figure that really reach the canvas, tick labels included."""
    return texts_of(figure(name))


def planes(picture: Figure) -> list:
    return [axes for axes in picture.axes if axes.get_aspect() == 1.0]


def artists_of(picture: Figure, kind: type) -> list:
    return picture.findobj(lambda artist: type(artist) is kind)


# what holds for every figure


@every_figure
def test_every_text_lies_inside_the_canvas(name: str) -> None:
    width, height = figure(name).bbox.size
    texts = drawn_texts(name)
    assert len(texts) >= 5
    for text in texts:
        box = text.get_window_extent()
        inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
        assert inside, (
            f"{text.get_text()!r} spans {box.extents.round()} on a canvas of {width:.0f} x "
            f"{height:.0f}"
        )


@every_figure
def test_no_text_is_smaller_than_nine_points(name: str) -> None:
    small = {
        text.get_text(): text.get_fontsize()
        for text in drawn_texts(name)
        if text.get_fontsize() < 9
    }
    assert not small


@every_figure
def test_no_two_texts_overlap(name: str) -> None:
    boxes = [
        (text.get_text(), text.get_window_extent())
        for text in drawn_texts(name)
        if text.get_rotation() in (0, 90)
    ]
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        apart = a.x1 <= b.x0 + 1 or b.x1 <= a.x0 + 1 or a.y1 <= b.y0 + 1 or b.y1 <= a.y0 + 1
        assert apart, f"{one!r} covers {other!r}"


@every_figure
def test_every_axis_is_named_by_itself_or_by_the_outer_panel(name: str) -> None:
    drawn_texts(name)  # the layout places the axes when the figure is drawn, not before
    places = {axes: axes.get_position() for axes in figure(name).axes}
    for axes, box in places.items():
        words = any(
            label.get_text().strip("−0123456789.") for label in axes.get_yticklabels()
        )  # methods' names need no name
        assert words or any(
            other.get_ylabel() for other, place in places.items() if abs(place.y0 - box.y0) < 1e-6
        )
        is_bar = box.width < 0.1 * box.height * figure(name).bbox.height / figure(name).bbox.width
        assert is_bar or any(
            other.get_xlabel() for other, place in places.items() if abs(place.x0 - box.x0) < 1e-6
        )


def test_figures_leave_no_trace_in_pyplot_or_in_the_settings() -> None:
    import matplotlib.pyplot as plt

    before = dict(matplotlib.rcParams)
    for build in (
        BUILDERS["quality_vs_steps"],
        BUILDERS["velocity_fields, one"],
        BUILDERS["image_grid"],
    ):
        viz.to_png(build())
    assert plt.get_fignums() == []
    assert dict(matplotlib.rcParams) == before


def test_no_module_imports_pyplot() -> None:
    package = Path(viz.__file__).parents[1]
    for file in [*package.glob("viz/*.py"), *package.glob("course/figures/*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import | ast.ImportFrom)
                else []
            )
            assert not any(
                "pyplot" in name for name in [*names, getattr(node, "module", None) or ""]
            ), file.name


def test_the_users_settings_do_not_change_a_picture() -> None:
    own = viz.to_png(BUILDERS["quality_vs_steps"]())
    with matplotlib.rc_context(
        {
            "font.size": 30,
            "axes.facecolor": "red",
            "savefig.facecolor": "black",
            "lines.linewidth": 9,
        }
    ):
        assert viz.to_png(BUILDERS["quality_vs_steps"]()) == own


def test_a_figure_shows_itself_in_a_notebook() -> None:
    png = figure("method_bars")._repr_png_()
    pixels = imread(io.BytesIO(png))
    width, height = figure("method_bars").get_size_inches() * viz.DPI
    assert pixels.shape[:2] == (round(height), round(width))
    assert pixels[0, 0, :3].tolist() == [1, 1, 1]


def test_global_randomness_and_inputs_stay_untouched() -> None:
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    x, log = images(10), rows(seeds=1)
    x_before, log_before = x.clone(), [dict(row) for row in log]
    viz.fields_figure(mixture(), paths=8, shown=4, steps=4)
    viz.image_grid({"fm": x}, range(10))
    viz.quality_vs_steps(log)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert torch.equal(x, x_before)
    assert log == log_before


# the palette


def test_the_palette_is_the_documented_one() -> None:
    assert (viz.NOISE, viz.DATA, viz.ATTRACT, viz.REPEL, viz.MODEL) == (
        "#7f7f7f",
        "#0072B2",
        "#009E73",
        "#D55E00",
        "#7B3FA0",
    )
    assert to_rgb(viz.TRUTH) == (0, 0, 0)
    assert (viz.METHOD_COLORS["fm"], viz.METHOD_COLORS["real"]) == (viz.ATTRACT, viz.TRUTH)
    assert viz.METHOD_LABELS["vecor_latent"] == "VeCoR (latent)"


def test_each_method_has_a_colour_and_a_marker_of_its_own() -> None:
    known = "fm fm_scaled fm_time_scaled fm_retargeted "
    known += (
        "delta_fm delta_fm_debiased vecor vecor_latent vecor_debiased dispersive repa pair real"
    )
    assert set(viz.METHOD_STYLES) == set(known.split())
    for part in ("label", "colour", "marker"):
        assert len({getattr(look, part) for look in viz.METHOD_STYLES.values()}) == len(
            viz.METHOD_STYLES
        )
    assert {viz.DATA, viz.REPEL, viz.NOISE}.isdisjoint(viz.METHOD_COLORS.values())


def lab(color: str, blindness: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (D65) of a colour as seen with a colour deficiency, a matrix on linear RGB."""
    rgb = np.array(to_rgb(color))
    linear = np.clip(
        blindness @ np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4), 0, 1
    )
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = to_xyz @ linear / to_xyz.sum(1)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize(
    "blindness",
    [
        np.eye(3),
        # complete deficiency: Machado, Oliveira and Fernandes 2009, table 1
        np.array(
            [
                [0.152286, 1.052583, -0.204868],
                [0.114503, 0.786281, 0.099216],
                [-0.003882, -0.048116, 1.051998],
            ]
        ),
        np.array(
            [
                [0.367322, 0.860646, -0.227968],
                [0.280085, 0.672501, 0.047413],
                [-0.011820, 0.042940, 0.968881],
            ]
        ),
    ],
    ids=["full", "protanopia", "deuteranopia"],
)
def test_the_methods_and_the_roles_can_be_told_apart_by_the_colour_blind(
    blindness: np.ndarray,
) -> None:
    seen = {name: lab(color, blindness) for name, color in viz.METHOD_COLORS.items()}
    near = [
        (a, b) for a, b in itertools.combinations(seen, 2) if np.linalg.norm(seen[a] - seen[b]) < 12
    ]
    assert not near
    roles = [lab(color, blindness) for color in (viz.ATTRACT, viz.REPEL, viz.DATA, viz.TRUTH)]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(roles, 2)) > 30


def test_an_unregistered_method_has_one_look_that_depends_on_its_name_alone() -> None:
    assert viz.method_style("my_term") == viz.method_style("my_term")
    assert viz.method_style("my_term").label == "my_term"
    assert len({viz.method_style(f"term {i}") for i in range(40)}) == 40
    with pytest.raises(ConfigError, match="non-empty"):
        viz.method_style("")


def test_the_diverging_map_is_neutral_at_zero_and_ends_in_data_and_repulsion() -> None:
    low, middle, high = (np.array(viz.DIVERGING(x)[:3]) for x in (0.0, 0.5, 1.0))
    assert np.allclose(low, to_rgb(viz.DATA), atol=0.01)
    assert np.allclose(high, to_rgb(viz.REPEL), atol=0.01)
    assert np.ptp(middle) < 0.02


# planes, arrows, contours and paths


@pytest.mark.parametrize("name", PLANES)
def test_the_coordinates_of_a_plane_are_a_and_b(name: str) -> None:
    for axis, coordinate in (("x", "$a$"), ("y", "$b$")):
        labels = {getattr(axes, f"get_{axis}label")() for axes in planes(figure(name))}
        assert coordinate in labels <= {coordinate, ""}


def test_x_1_is_the_data_and_never_a_coordinate() -> None:
    kinds = ("cfm_lite/**/*.py", "slides/**/*.py", "slides/*.md", "tools/**/*.py", "docs/*.md")
    texts = {path: path.read_text("utf-8") for kind in kinds for path in ROOT.glob(kind)}
    for path in ROOT.glob("notebooks/*.ipynb"):
        cells = json.loads(path.read_text("utf-8"))["cells"]
        texts[path] = "\n".join("".join(cell["source"]) for cell in cells)
    clash = re.compile(r"x_\{?2\b|x₂|label=\W*x(_1|₁)|velocity along \W*x")
    found = {path.name: hits for path, text in texts.items() if (hits := clash.findall(text))}
    assert not found, f"the coordinates of a plane are a and b: {found}"


@pytest.mark.parametrize("name", PLANES)
def test_planes_are_equal_squares_with_shared_limits(name: str) -> None:
    panels = planes(figure(name))
    assert len({(*axes.get_xlim(), *axes.get_ylim()) for axes in panels}) == 1
    figure(name).canvas.draw()
    sizes = np.array([axes.get_window_extent().size for axes in panels])
    assert np.allclose(sizes, sizes[0, 0], atol=0.5)


@pytest.mark.parametrize("name", ["fields_figure", "velocity_fields"])
def test_arrows_share_one_scale_with_their_key(name: str) -> None:
    quivers = artists_of(figure(name), Quiver)
    assert len(quivers) == 4 if name == "fields_figure" else 5
    assert len({(q.scale, q.scale_units, q.angles) for q in quivers}) == 1
    key = min(quivers, key=lambda q: q.N)
    assert key.N == 1
    shown = next(
        text.get_text()
        for text in figure(name).findobj(Text)
        if text.get_text().startswith("speed")
    )
    assert float(shown.split()[1]) == key.U[0]


def test_the_longest_arrow_spans_the_cells_that_were_asked_for() -> None:
    v = np.array([[3.0, 4.0], [0.0, 1.0]])
    assert 5 / viz.arrow_scale([v, v / 2], LIMITS, 10, longest=2) == pytest.approx(2 * 7 / 10)
    assert viz.arrow_scale([np.zeros((2, 2))], LIMITS) > 0


def test_grid_points_are_cell_centres_or_reach_the_border() -> None:
    centres, corners = (
        viz.grid_points((0, 4, 1, 5), 4),
        viz.grid_points((0, 4, 1, 5), 5, inset=False),
    )
    assert centres[0].tolist() == [0.5, 1.5]
    assert centres[1].tolist() == [1.5, 1.5]  # x runs first
    assert corners[[0, -1]].tolist() == [[0, 1], [4, 5]]


@pytest.mark.parametrize(
    "clouds", [[[[0, 0], [10, 1]]], [[[-1.3, 2.2]]], [[[0, 0]], [[[5, 5], [-7, 3]]]]]
)
def test_square_limits_are_square_and_hold_every_point(clouds: list) -> None:
    left, right, bottom, top = viz.square_limits(*clouds)
    assert right - left == pytest.approx(top - bottom)
    for cloud in clouds:
        x, y = np.reshape(cloud, (-1, 2)).T
        assert left <= x.min() <= x.max() <= right
        assert bottom <= y.min() <= y.max() <= top


@pytest.mark.parametrize("margin", [0.0, 0.08, 0.35])
def test_square_limits_hold_every_point_wherever_the_points_lie(margin: float) -> None:
    draws = np.random.default_rng(0)
    for _ in range(500):
        cloud = draws.uniform(-5, 5, 2) + 10 ** draws.uniform(-2, 1.5) * draws.uniform(
            -1, 1, (5, 2)
        )
        left, right, bottom, top = viz.square_limits(cloud, margin=margin)
        (a, b), (last_a, last_b) = cloud.min(0), cloud.max(0)
        assert left <= a + 1e-9
        assert right >= last_a - 1e-9
        assert bottom <= b + 1e-9
        assert top >= last_b - 1e-9
        assert right - left == pytest.approx(top - bottom)
        for bound in (left, bottom):  # whole steps, and not a step too large
            assert bound / 0.5 == pytest.approx(round(bound / 0.5))
        assert right - left <= max((cloud.max(0) - cloud.min(0)).max() * (1 + 2 * margin), 1) + 1


def test_mass_levels_of_a_normal_density_are_its_quantiles() -> None:
    x = viz.grid_points((-6, 6, -6, 6), 241, inset=False)
    log_density = -(x**2).sum(1) / 2 - math.log(2 * math.pi)
    wanted = [
        math.log(1 - mass) - math.log(2 * math.pi) for mass in (0.95, 0.5)
    ]  # P(r > R) = exp(-R^2 / 2)
    levels = viz.mass_levels(log_density, [0.5, 0.95])
    assert levels == pytest.approx(wanted, abs=0.02)
    assert viz.mass_levels(log_density - 3000, [0.5, 0.95]) == pytest.approx(
        [level - 3000 for level in levels]
    )  # exp would be 0


def test_paths_run_from_the_start_to_the_end_and_are_coloured_by_time() -> None:
    _, panels = viz.squares(1, 1, LIMITS)
    x = np.array([[[0, 0], [1, 1]], [[1, 0], [2, 2]], [[2, 1], [3, 3]]], dtype=float)  # (3, 2, 2)
    lines = viz.paths(panels[0, 0], x, [0.0, 0.5, 1.0])
    segments = np.array(lines.get_segments())
    assert segments[[0, 2]].tolist() == [[[0, 0], [1, 0]], [[1, 0], [2, 1]]]
    assert lines.get_array().tolist() == [0.25, 0.25, 0.75, 0.75]
    assert lines.get_cmap().name == "viridis"
    assert lines.get_clim() == (0, 1)


def test_arrows_and_points_are_artists_that_can_be_moved() -> None:
    picture, panels = viz.squares(1, 1, LIMITS)
    x = viz.grid_points(LIMITS, 5)
    quiver = viz.arrows(panels[0, 0], x, viz.evaluate(velocity("fm"), x, 0.3), scale=5)
    cloud = viz.points(panels[0, 0], data())
    before = viz.to_png(picture)
    quiver.set_UVC(
        *velocity("fm")(
            torch.as_tensor(viz.grid_points(LIMITS, 5)).float(), torch.full((25,), 0.9)
        ).T
    )
    cloud.set_offsets(data().flip(1))
    assert viz.to_png(picture) != before


def test_panels_stand_with_fm_first_and_the_truth_last() -> None:
    assert [axes.get_title(loc="left") for axes in planes(figure("velocity_fields"))] == [
        "FM",
        "ΔFM",
        "A network",
        "Truth",
    ]
    assert [axes.get_title(loc="left") for axes in planes(figure("point_samples"))] == [
        "ΔFM",
        "Real data",
    ]


def test_field_error_is_the_speed_gained_along_the_truth() -> None:
    truth = velocity("fm")
    picture = viz.field_error(
        {"fm": truth, "twice": lambda x, t: 2 * truth(x, t)}, truth, 0.5, LIMITS, n=9
    )
    maps = [axes.images[0] for axes in planes(picture)]
    speed = np.linalg.norm(viz.evaluate(truth, viz.grid_points(LIMITS, 9), 0.5), axis=1).reshape(
        9, 9
    )
    assert np.allclose(maps[0].get_array(), 0)
    assert np.allclose(maps[1].get_array(), speed, rtol=1e-5)
    low, high = maps[0].get_clim()
    assert low == -high == pytest.approx(-speed.max())
    assert maps[0].origin == "lower"


# the picture that the project is about


def test_fields_figure_adds_attraction_and_repulsion_up_to_the_optimum() -> None:
    attract, push, result = (q for q in artists_of(figure("fields_figure"), Quiver) if q.N > 1)
    x = torch.as_tensor(attract.get_offsets()).float()
    t, y = torch.full((len(x),), 0.55), torch.zeros(len(x)).long()
    u_neg = theory.mean_negative(mixture(), x, t, y, method="delta_fm")
    v = theory.optimal_velocity(mixture(), x, t, y, method="fm")
    field = lambda q: np.stack([q.U, q.V], axis=1)  # noqa: E731
    assert np.allclose(field(attract), v, atol=1e-5)
    assert np.allclose(field(push), 0.35 / 0.65 * (v - u_neg), atol=1e-5)
    assert np.allclose(field(attract) + field(push), field(result), atol=1e-5)
    assert [
        np.allclose(q.get_facecolor()[0][:3], to_rgb(c))
        for q, c in zip((attract, push, result), (viz.ATTRACT, viz.REPEL, viz.MODEL))
    ] == [True] * 3


def test_fields_figure_counts_who_lands_on_the_data() -> None:
    picture = viz.fields_figure(mixture(), paths=400, steps=24)
    said = dict(landed(picture))
    assert list(said) == ["FM", "ΔFM"]
    assert 91 <= int(said["FM"]) <= 98  # the contour holds 95 %
    assert int(said["ΔFM"]) < int(said["FM"]) - 10
    weightless = dict(landed(viz.fields_figure(mixture(), weight=0.0, paths=50, steps=8)))
    assert weightless["FM"] == weightless["ΔFM"]


def landed(picture: Figure) -> list:
    (text,) = (t.get_text() for t in planes(picture)[3].texts)
    return re.findall(r"(\S*FM): (\d+) %", text)


def test_fields_figure_draws_paths_in_viridis_and_arrows_only_where_the_class_is() -> None:
    picture = figure("fields_figure")
    lines = artists_of(picture, LineCollection)
    paths = [line for line in lines if line.get_array() is not None and len(line.get_array()) > 100]
    assert [line.get_cmap().name for line in paths] == ["viridis"]
    quiver = max(artists_of(picture, Quiver), key=lambda q: q.N)
    assert 30 < quiver.N < 18 * 18
    log_density = density(0.55)(torch.as_tensor(quiver.get_offsets()).float())
    assert log_density.min() > log_density.max() - 8


@pytest.mark.parametrize("path", ["COSINE", "VP"])
def test_fields_figure_knows_other_paths(path: str) -> None:
    from cfm_lite import paths

    picture = viz.fields_figure(mixture(), path=getattr(paths, path), label=1, paths=8, steps=8)
    assert "class 1" in picture.get_suptitle()


@pytest.mark.parametrize(
    ("change", "message"),
    [({"label": 2}, "label"), ({"weight": 1.0}, "weight"), ({"weight": math.nan}, "weight"), ({"t": 1.0}, "t is"), ({"t": 0}, "t is"),
     ({"n": 1}, "n is"), ({"steps": 0}, "steps"), ({"paths": 0}, "paths"), ({"shown": 2.5}, "shown")],
)  # fmt: skip
def test_fields_figure_refuses_what_it_cannot_draw(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        viz.fields_figure(mixture(), **change)


def test_fields_figure_needs_a_mixture_in_the_plane() -> None:
    with pytest.raises(ConfigError, match="3 dimensions"):
        viz.fields_figure(theory.GaussianMixture([1.0], [[0.0, 0, 0]], [1.0]))
    with pytest.raises(ConfigError, match="Tensor"):
        viz.fields_figure(torch.zeros(3, 2))


# images


def test_image_grid_shows_real_images_first_and_each_image_in_its_place() -> None:
    bright, dark = torch.ones(2, 1, 28, 28), -torch.ones(2, 1, 28, 28)
    picture = viz.image_grid(
        {"fm": torch.stack([bright[0], dark[0]]), "real": torch.stack([dark[0], bright[0]])},
        ["a", "b"],
    )
    (axes,) = picture.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["Real data", "FM"]
    pixels = imread(io.BytesIO(viz.to_png(picture)))[..., 0]
    values = [[_pixel(axes, pixels, row, column) for column in (0.5, 1.5)] for row in (0.5, 1.5)]
    assert values == [[0, 1], [1, 0]]


def test_neighbours_of_one_label_share_it_over_their_middle() -> None:
    (axes,) = viz.image_grid({"fm": images(6)}, ["cat", "cat", "dog", "cat", "cat", "cat"]).axes
    told = [label.get_text() for label in axes.get_xticklabels()]
    assert list(zip(told, axes.get_xticks())) == [("cat", 1), ("dog", 2.5), ("cat", 4.5)]


def _pixel(axes: Axes, pixels: np.ndarray, row: float, column: float) -> float:
    x, y = axes.transData.transform((column, row))
    return float(pixels[round(len(pixels) - y), round(x)])


def test_images_are_shown_pixel_by_pixel_whatever_their_size() -> None:
    for side in (8, 28):
        (axes,) = viz.image_grid({"fm": images(2, side)}).axes
        assert {image.get_interpolation() for image in axes.images} == {"nearest"}


def test_images_outside_the_range_are_clipped_not_rescaled() -> None:
    (axes,) = viz.image_grid(
        {"fm": torch.tensor([-5.0, 0.5]).reshape(2, 1, 1, 1).expand(2, 1, 4, 4)}
    ).axes
    assert [float(image.get_array().max()) for image in axes.images] == [-1.0, 0.5]
    assert axes.images[0].get_clim() == (-1, 1)


def test_colour_images_map_minus_one_to_black_and_one_to_white() -> None:
    (axes,) = viz.image_grid({"fm": torch.stack([-torch.ones(3, 4, 4), torch.ones(3, 4, 4)])}).axes
    assert [np.unique(image.get_array()).tolist() for image in axes.images] == [[0.0], [1.0]]


def test_signed_velocities_share_one_scale_centred_at_zero() -> None:
    axes, bar = figure("perturbation_gallery, signed").axes
    assert {image.get_clim() for image in axes.images} == {(-1, 1)}
    labels = [label.get_text() for label in bar.get_yticklabels()]
    assert labels[2] == "0"
    assert labels[0] == "−" + labels[-1]


# numbers


def test_quality_vs_steps_shows_means_ranges_and_the_reference() -> None:
    picture = figure("quality_vs_steps")
    frechet, accuracy = picture.axes
    assert (frechet.get_yscale(), accuracy.get_yscale()) == ("log", "linear")
    assert [label.get_text() for label in frechet.get_xticklabels()] == ["2", "4", "8", "16", "50"]
    line, _, (bars,) = frechet.containers[0]
    assert line.get_color() == viz.METHOD_COLORS["fm"]
    assert line.get_ydata() == pytest.approx(
        [(3 + 60 / n) * (1 + 0.25 / 3) for n in (2, 4, 8, 16, 50)]
    )
    low, high = np.array(bars.get_segments())[0][:, 1]
    assert (low, high) == pytest.approx((33, 33 * 1.2))
    dashed = {
        axes: [
            x.get_ydata()[0]
            for x in axes.lines
            if x.get_linestyle() == "--" and x.get_color() == viz.TRUTH
        ]
        for axes in picture.axes
    }
    assert dashed[frechet] == pytest.approx([1.25])
    assert dashed[accuracy] == pytest.approx([98])
    assert max(accuracy.containers[0][0].get_ydata()) > 90  # a percentage
    assert "lowest to highest" in picture.get_supxlabel()


def test_where_samples_differ_in_number_the_floor_of_real_data_does_too() -> None:
    picture = figure("quality_vs_steps, samples")
    panel, line = picture.axes[0], picture.axes[0].lines[-1]
    assert line.get_linestyle() == "--"
    at = dict(zip(line.get_xdata(), line.get_ydata()))
    assert [at[nfe] for nfe in (4, 8, 16, 50)] == [1.25, 1.25, 1.25, 0.25]
    assert [at[edge] for edge in panel.get_xlim()] == [1.25, 0.25]
    assert (
        "2,000 with 2, 4, 8, 16 evaluations; 10,000 with 50 evaluations" in picture.get_supxlabel()
    )


def test_quality_vs_steps_gives_each_method_its_colour_and_one_legend_entry() -> None:
    picture = figure("quality_vs_steps")
    for axes in picture.axes:
        assert [box[0].get_color() for box in axes.containers] == [
            viz.METHOD_COLORS[name] for name in METHODS
        ]
    assert [text.get_text() for text in picture.legends[0].get_texts()] == [
        viz.METHOD_LABELS[name] for name in (*METHODS, "real")
    ]


def test_one_seed_has_no_error_bars_and_true_positions() -> None:
    picture = figure("quality_vs_steps, one seed")
    for box in picture.axes[0].containers:
        assert box[0].get_xdata().tolist() == [2, 4, 8, 16, 50]
        assert not box.has_yerr
    assert picture.get_supxlabel() == ""


def test_the_legend_stands_outside_the_data() -> None:
    for name in ("quality_vs_steps", "training_curves", "fields_figure", "trajectories"):
        picture = figure(name)
        picture.canvas.draw()
        legends = [
            *picture.legends,
            *(axes.get_legend() for axes in picture.axes if axes.get_legend()),
        ]
        assert legends
        for legend, axes in itertools.product(legends, picture.axes):
            assert (
                not legend.get_window_extent().overlaps(axes.get_window_extent().padded(-2))
                or not axes.axison
            )


def test_missing_values_are_counted_and_not_drawn() -> None:
    some = rows(seeds=1)
    some[0] = some[0] | {"value": None}
    picture = viz.quality_vs_steps(some)
    assert "not finite: 1." in picture.get_supxlabel()
    assert picture.axes[0].containers[0][0].get_xdata().tolist() == [4, 8, 16, 50]


def test_rows_that_claim_one_place_twice_are_refused() -> None:
    with pytest.raises(ConfigError, match="two rows claim the same place: method fm"):
        viz.quality_vs_steps(rows() + rows())


def test_an_unknown_metric_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'frechet'"):
        viz.quality_vs_steps(rows(), ["frechets"])
    with pytest.raises(ConfigError, match="no rows"):
        viz.quality_vs_steps([])
    with pytest.raises(ConfigError, match="has no nfe"):
        viz.quality_vs_steps([{"method": "fm", "metric": "frechet", "value": 1.0}], ["frechet"])
    with pytest.raises(ConfigError, match="all are None"):
        viz.method_bars([{"method": "fm", "metric": "frechet", "value": None}], "frechet")


def test_method_bars_needs_one_number_of_steps_and_shows_its_mean() -> None:
    with pytest.raises(ConfigError, match=r"choose one: nfe="):
        viz.method_bars(rows(), "frechet")
    with pytest.raises(ConfigError, match="nfe is '3'"):
        viz.method_bars(rows(), "frechet", nfe=3)
    (axes,) = viz.method_bars(rows(), "frechet", nfe=50).axes
    assert axes.patches[0].get_width() == pytest.approx(4.2 * (1 + 0.25 / 3))
    assert len(axes.lines[0].get_xdata()) == 3  # a dot per seed
    assert axes.get_xlim()[0] == 0  # a bar that does not begin at zero lies


def test_running_mean_of_a_constant_is_that_constant_to_the_ends() -> None:
    log = [{"step": k, "loss": 2.5} for k in range(200)]
    (axes,) = viz.training_curves(log).axes
    assert axes.lines[1].get_ydata() == pytest.approx(np.full(200, 2.5))


def test_training_curves_draw_every_logged_number_or_the_chosen_ones() -> None:
    assert [axes.get_ylabel() for axes in figure("training_curves").axes] == [
        "loss",
        "grad norm",
        "repulsion",
    ]
    with pytest.raises(ConfigError, match="Did you mean 'loss'"):
        viz.training_curves(logs(), ["los"])
    with pytest.raises(ConfigError, match="no numbers"):
        viz.training_curves([])


# bad input

NAN = {
    "velocity_fields": lambda: viz.velocity_fields({"fm": lambda x, t: x * math.nan}, 0.5, LIMITS),
    "field_error": lambda: viz.field_error(
        {"fm": lambda x, t: x * math.nan}, velocity("fm"), 0.5, LIMITS
    ),
    "contours": lambda: viz.point_samples({"fm": data()}, density=lambda x: x[:, 0] * math.inf),
    "trajectories": lambda: viz.trajectories({"fm": torch.full((3, 2, 2), math.nan)}, [0, 0.5, 1]),
    "times": lambda: viz.trajectories({"fm": torch.zeros(3, 2, 2)}, [0, math.nan, 1]),
    "point_samples": lambda: viz.point_samples({"fm": torch.tensor([[0.0, math.inf]])}),
    "image_grid": lambda: viz.image_grid({"fm": torch.full((2, 1, 8, 8), math.nan)}),
    "perturbation_gallery": lambda: viz.perturbation_gallery(
        images(1), {"cutmix": images(1) * math.nan}
    ),
    "quality_vs_steps": lambda: viz.quality_vs_steps(
        [*rows(), {"method": "repa", "metric": "frechet", "nfe": 2, "value": math.nan}]
    ),
    "method_bars": lambda: viz.method_bars(
        [{"method": "fm", "metric": "mmd", "value": math.inf}], "mmd"
    ),
    "training_curves": lambda: viz.training_curves([{"step": 0, "loss": math.nan}]),
    "limits": lambda: viz.velocity_fields({"fm": velocity("fm")}, 0.5, (0, 1, 0, math.nan)),
}


@pytest.mark.parametrize("name", list(NAN))
def test_nan_is_refused_with_a_count(name: str) -> None:
    with pytest.raises(ConfigError, match=r"holds \d+ values? .*NaN or infinite"):
        NAN[name]()


BAD = {
    "bytes as images": (
        lambda: viz.image_grid({"fm": torch.zeros(2, 1, 8, 8, dtype=torch.uint8)}),
        "holds whole numbers of torch.uint8",
    ),
    "bytes of NumPy": (
        lambda: viz.captioned(np.zeros((1, 3, 8, 8), np.uint8), ["a"]),
        "whole numbers of uint8",
    ),
    "perturbed bytes": (
        lambda: viz.perturbation_gallery(images(1), {"cutmix": np.zeros((1, 1, 8, 8), np.uint8)}),
        r"wrong\['cutmix'\] holds whole numbers",
    ),
    "no panels": (lambda: viz.velocity_fields({}, 0.5, LIMITS), "pass a dict"),
    "a list of fields": (lambda: viz.velocity_fields([velocity("fm")], 0.5, LIMITS), "pass a dict"),
    "no square": (lambda: viz.velocity_fields({"fm": velocity("fm")}, 0.5, (0, 1, 0, 2)), "square"),
    "a late time": (lambda: viz.velocity_fields({"fm": velocity("fm")}, 1.5, LIMITS), "t is 1.5"),
    "a velocity in 3D": (lambda: viz.velocity_fields({"fm": lambda x, t: x[:, :1]}, 0.5, LIMITS), r"shape \(289, 1\)"),
    "paths and times of unequal length": (lambda: viz.trajectories({"fm": torch.rand(3, 2, 2)}, [0, 1]), "do not fit"),
    "one state only": (lambda: viz.trajectories({"fm": torch.rand(1, 2, 2)}, [0]), "S >= 2"),
    "a drift for another method": (lambda: viz.trajectories(states(), range(17), values={"fm": torch.rand(17, 40)}), "has no 'vecor'"),
    "half a path": (lambda: viz.trajectories(states(), range(17), shown=1.5), "shown is 1.5"),
    "fewer than no paths": (lambda: viz.trajectories(states(), range(17), shown=-1), "shown is -1"),
    "limits of nothing": (lambda: viz.square_limits(), "at least one"),
    "a step of zero": (lambda: viz.square_limits([[0, 1]], step=0), "step is 0"),
    "a margin below zero": (lambda: viz.square_limits([[0, 1]], margin=-1), "margin is -1"),
    "a constant density": (lambda: viz.contours(panel(), np.zeros((5, 5)), (-2, 2, -2, 2)), "constant"),
    "what is no figure": (lambda: viz.save(None, "a.png"), "figure has type NoneType"),
    "bytes of what is no figure": (lambda: viz.to_png(None), "figure has type NoneType"),
    "bars of no rows": (lambda: viz.method_bars([], "frechet"), "there are no rows"),
    "flat points": (lambda: viz.point_samples({"fm": torch.rand(5)}), "must be"),
    "no points": (lambda: viz.point_samples({"fm": torch.rand(0, 2)}), "empty"),
    "arrows without a base": (lambda: viz.arrows(panel(), torch.rand(3, 2), torch.rand(2, 2), scale=1), "differ"),
    "a scale of zero": (lambda: viz.arrows(panel(), [[0, 0]], [[1, 1]], scale=0), "scale"),
    "all of the mass": (lambda: viz.mass_levels(np.zeros(4), [1.0]), "mass"),
    "images without channels": (lambda: viz.image_grid({"fm": torch.rand(2, 8, 8)}), "must be"),
    "latents": (lambda: viz.image_grid({"fm": torch.rand(2, 4, 8, 8)}), "4 channels"),
    "rows of unequal length": (lambda: viz.image_grid({"fm": images(2), "repa": images(3)}), "one image per column"),
    "too many labels": (lambda: viz.image_grid({"fm": images(2)}, range(10)), "10 column labels"),
    "an unknown ink": (lambda: viz.image_grid({"fm": images(2)}, ink="grey"), "ink"),
    "no rows": (lambda: viz.image_grid({}), "pass a dict"),
    "perturbed images of another size": (lambda: viz.perturbation_gallery(images(2), {"crop": images(2, 4)}), "must be"),
    "nothing perturbed": (lambda: viz.perturbation_gallery(images(2), {}), "empty"),
    "signed colours": (lambda: viz.perturbation_gallery(images(2, 8, 3), {"blur": images(2, 8, 3)}, signed=True), "must be"),
    "words": (lambda: viz.point_samples({"fm": [["a", "b"]]}), "no plain numbers"),
    "a small dpi": (lambda: viz.to_png(figure("method_bars"), dpi=0), "dpi"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(BAD))
def test_bad_input_is_refused_with_what_was_seen(name: str) -> None:
    call, message = BAD[name]
    with pytest.raises(ConfigError, match=message):
        call()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.uint8])
def test_tensors_of_any_dtype_become_float64(dtype: torch.dtype) -> None:
    values = style.as_array("x", torch.ones(2, 3, dtype=dtype), 2, None)
    assert values.dtype == np.float64
    assert values.sum() == 6


def test_a_model_that_needs_gradients_off_is_evaluated_without_them() -> None:
    net = torch.nn.Linear(2, 2)
    v = artists.evaluate(lambda x, t: net(x), np.zeros((3, 2)), 0.5)
    assert np.allclose(v, net.bias.detach())


# files


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_the_same_figure_is_the_same_file(kind: str, tmp_path: Path) -> None:
    one, two = (
        viz.save(BUILDERS["method_bars"](), tmp_path / f"new/{name}.{kind}") for name in "ab"
    )
    assert one.read_bytes() == two.read_bytes()
    assert sorted(path.name for path in one.parent.iterdir()) == [f"a.{kind}", f"b.{kind}"]


def test_a_failed_save_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = viz.save(figure("method_bars"), tmp_path / "a.png")
    old = path.read_bytes()

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("broken pen")

    monkeypatch.setattr(viz.Picture, "savefig", fail)
    with pytest.raises(OSError, match="broken pen"):
        viz.save(figure("method_bars"), path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_an_unknown_kind_of_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.png, \.svg or \.pdf"):
        viz.save(figure("method_bars"), tmp_path / "a.jpg")
    assert not list(tmp_path.iterdir())
