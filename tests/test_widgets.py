"""Every explorer without a browser: each control changes the picture, an error is shown and loses
nothing, and no figure leaks.
"""

import base64
import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

ipywidgets = pytest.importorskip("ipywidgets")

from cfm_lite import theory, widgets  # noqa: E402
from cfm_lite.errors import ConfigError  # noqa: E402
from cfm_lite.viz import new_figure  # noqa: E402

EXPLORERS = {
    name: getattr(widgets, name)
    for name in (
        "exact_field",
        "trajectories",
        "divergence",
        "wrong_velocities",
        "guidance",
        "features",
    )
}
every_explorer = pytest.mark.parametrize("name", EXPLORERS)
# where a control says nothing by its meaning, what must be set first for it to have an effect
FIRST = {
    ("features", "tau"): {"step": 10},
    ("features", "variant"): {"step": 10},
    ("guidance", "interval"): {"scale": 3.0},
    ("divergence", "k"): {"weight": 0.2},
    ("divergence", "method"): {"weight": 0.3},
}


@pytest.fixture(scope="module")
def explorers():
    made = {name: make() for name, make in EXPLORERS.items()}
    yield made
    for explorer in made.values():
        explorer.close()


def pixels(explorer) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(explorer.png)))


def elsewhere(control):
    """A value of a control other than the one it has, well inside its range."""
    if isinstance(control, ipywidgets.Dropdown):
        values = [option[1] if isinstance(option, tuple) else option for option in control.options]
        return next(value for value in values if value != control.value)
    if isinstance(control, ipywidgets.Checkbox):
        return not control.value
    if isinstance(control, ipywidgets.FloatRangeSlider):
        return (0.3, 0.7)
    middle = control.min + 0.6 * (control.max - control.min)
    return int(middle) if isinstance(control, ipywidgets.IntSlider) else round(middle, 2)


@every_explorer
def test_an_explorer_shows_a_picture_at_once(name, explorers):
    explorer = explorers[name]
    assert explorer.error is None
    assert explorer.png[:8] == b"\x89PNG\r\n\x1a\n"
    height, width, _ = pixels(explorer).shape
    assert explorer.image.layout.width == f"{width}px"
    assert explorer.image.layout.height == f"{height}px"
    assert width <= 1150
    assert pixels(explorer).std() > 10


@every_explorer
def test_each_control_changes_the_picture_and_nothing_else_does(name, explorers):
    explorer = explorers[name]
    for control_name, control in explorer.controls.items():
        start = explorer.values
        explorer.set(**FIRST.get((name, control_name), {}))
        before = pixels(explorer)
        old, new = control.value, elsewhere(control)
        control.value = new
        assert explorer.error is None, f"{control_name} = {new}: {explorer.error}"
        assert (pixels(explorer) != before).sum() > 30, f"{control_name} = {new} changes nothing"
        control.value = old
        np.testing.assert_array_equal(
            pixels(explorer), before, f"{control_name} back to {old} is another picture"
        )
        explorer.set(**start)


@every_explorer
def test_a_slider_reaches_both_its_ends(name, explorers):
    explorer = explorers[name]
    for control in explorer.controls.values():
        if isinstance(control, ipywidgets.FloatSlider | ipywidgets.IntSlider):
            old = control.value
            for end in (control.min, control.max):
                control.value = end
                assert explorer.error is None, f"{control.description} = {end}"
            control.value = control.max + 1  # a bound holds
            assert control.value == control.max
            control.value = old


@every_explorer
def test_the_picture_keeps_its_size_and_its_place(name, explorers):
    explorer, shape = explorers[name], pixels(explorers[name]).shape
    for control in explorer.controls.values():
        old = control.value
        control.value = elsewhere(control)
        assert pixels(explorer).shape == shape
        control.value = old
    assert explorer.status.layout.height  # the line below has a height of its own


@every_explorer
def test_labels_have_units_or_ranges_and_a_tooltip(name, explorers):
    for control in explorers[name].controls.values():
        assert control.description
        assert control.tooltip
    assert explorers[name].title.value.startswith("<b>")


@every_explorer
def test_without_a_kernel_a_picture_is_shown(name, explorers):
    bundle = explorers[name]._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert (
        base64.b64decode(bundle["image/png"]) == explorers[name].png
    )  # base64 text: bytes would make the notebook invalid
    assert isinstance(bundle["image/png"], str)
    assert bundle["text/plain"].startswith("Explorer(")


def test_no_figure_leaks_and_random_states_stay(explorers):
    assert plt.get_fignums() == []
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    for explorer in explorers.values():
        explorer.redraw()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    assert plt.get_fignums() == []


def test_an_error_is_shown_and_the_picture_stays(explorers):
    explorer = explorers["wrong_velocities"]
    before = explorer.png
    explorer.set(perturb="channel_shuffle")  # one channel has nothing to shuffle
    assert isinstance(explorer.error, ConfigError)
    assert "at least 2 channels" in explorer.status.value
    assert 'role="alert"' in explorer.status.value
    assert explorer.png == before
    explorer.set(perturb="crop_resize")
    assert explorer.error is None
    assert "alert" not in explorer.status.value


def test_a_status_line_shows_no_markup_of_an_error():
    figure = new_figure(2, 2)
    (line,) = figure.subplots().plot([0, 1], [0, 1])

    def fail(x: float) -> str:
        raise ValueError("<script>alert(1)</script>")

    explorer = widgets.Explorer(
        widgets.Canvas(figure, [line]), {"x": ipywidgets.FloatSlider()}, fail
    )
    assert "<script>" not in explorer.status.value
    assert "&lt;script&gt;" in explorer.status.value


def test_an_unknown_control_is_named(explorers):
    with pytest.raises(ConfigError, match="Did you mean 'weight'"):
        explorers["exact_field"].set(weigth=0.1)


def test_play_moves_its_slider_from_end_to_end(explorers):
    for name, explorer in explorers.items():
        moved = explorer.controls[
            {
                "divergence": "weight",
                "wrong_velocities": "strength",
                "guidance": "scale",
                "features": "step",
            }.get(name, "t")
        ]
        old = moved.value
        explorer.play.value = explorer.play.max
        assert moved.value == pytest.approx(moved.max), name
        explorer.play.value = 0
        assert moved.value == pytest.approx(moved.min), name
        moved.value = old


def test_the_exact_field_takes_any_mixture_of_the_plane():
    mixture = theory.GaussianMixture(
        [1, 2], [[-20.0, 5.0], [10.0, -3.0]], [1.0, 0.5], labels=[3, 5]
    )
    explorer = widgets.exact_field(mixture)
    assert explorer.error is None
    assert [value for _, value in explorer.controls["label"].options] == [-1, 3, 5]
    explorer.close()


def test_the_arrows_are_those_of_the_theory(explorers):
    explorer = explorers["exact_field"].set(t=0.4, weight=0.25, label=1, method="vecor")
    quivers = [artist for artist in explorer.canvas.moving if hasattr(artist, "U")]
    attract, push, result = (np.stack([q.U, q.V], 1) for q in quivers)
    shown = ~quivers[2].Umask  # only where the class is
    assert 10 < shown.sum() < len(shown)
    x = torch.as_tensor(np.stack([quivers[0].X, quivers[0].Y], 1))
    y, t = torch.ones(len(x), dtype=torch.long), torch.full((len(x),), 0.4, dtype=x.dtype)
    mixture = widgets.scenes.two_classes()
    exact = theory.optimal_velocity(mixture, x, t, y, method="vecor", weight=0.25).numpy()
    np.testing.assert_allclose(result[shown], exact[shown], rtol=1e-9)
    np.testing.assert_allclose((attract + push)[shown], result[shown], rtol=1e-9)


def test_divergence_says_that_there_is_no_optimum(explorers):
    explorer = explorers["divergence"].set(weight=1.0, k=1)
    assert "refuses" in explorer.status.value
    explorer.set(weight=0.3, k=4)
    assert "refuses" in explorer.status.value
    explorer.set(weight=0.2)
    assert "5.00-fold" in explorer.status.value


def test_the_correction_gives_fm_back_exactly(explorers):
    explorer = explorers["guidance"].set(
        method="delta_fm", scale=3.0, correct=True, interval=(0.0, 1.0)
    )
    paths = [artist for artist in explorer.canvas.moving if hasattr(artist, "get_segments")]
    ends = [
        np.array(lines.get_segments())[-64:, 1] for lines in paths if len(lines.get_segments()) > 64
    ]
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-8)
    explorer.set(correct=False)
    ends = [
        np.array(lines.get_segments())[-64:, 1] for lines in paths if len(lines.get_segments()) > 64
    ]
    assert np.abs(ends[0] - ends[1]).max() > 0.2
