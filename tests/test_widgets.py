"""Every explorer without a browser: its controls are attributes that can be read, set and observed,
a wrong value is refused and changes nothing, and a notebook holds the page's engine once.

What the page computes is tested in tests/js, what a hand does in tests/browser.
"""

import base64
import json
import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

ipywidgets = pytest.importorskip("ipywidgets")
pytest.importorskip("anywidget")

from cfm_lite import guidance, pretrained, runs, samplers, theory, widgets  # noqa: E402
from cfm_lite._internal.files import hash_of_file  # noqa: E402
from cfm_lite.data import captions, toy  # noqa: E402
from cfm_lite.errors import CheckpointError, ConfigError  # noqa: E402
from cfm_lite.runs.recipe import build_model, recipe  # noqa: E402
from cfm_lite.runs.sampling import draw_run, noise_of, settings_of, velocity_of  # noqa: E402
from cfm_lite.widgets import _widget, _words  # noqa: E402

EXPLORERS = {
    name: getattr(widgets, name) for name in widgets.__all__ if name not in ("Explorer", "alive")
}
every_explorer = pytest.mark.parametrize("name", EXPLORERS)


MADE = {}


@pytest.fixture(scope="module")
def tiny():
    """An untrained network of `words`: what is drawn is not looked at."""
    chosen = recipe("words").changed(hidden_size=32, depth=1, num_heads=2, sample_steps=2)
    spec = runs.Spec((3, 32, 32), 0, "captions")
    return runs.Run(chosen, build_model(chosen, spec).eval(), spec=spec)


@pytest.fixture(autouse=True)
def drawing(tiny, monkeypatch):
    drawn = _words._drawn
    drawn.cache_clear()
    monkeypatch.setattr(_words, "_run", lambda: tiny)
    yield
    drawn.cache_clear()


@pytest.fixture
def explorers():
    if any(explorer.comm is None for explorer in MADE.values()):  # a test closed all widgets
        MADE.clear()
    MADE.update({name: make() for name, make in EXPLORERS.items() if name not in MADE})
    return MADE


def elsewhere(explorer, name):
    """Another value of a control, well inside its range."""
    trait = explorer.traits()[name]
    if isinstance(trait, _widget.Choice):
        options = list(trait.options(explorer) if callable(trait.options) else trait.options)
        return next(value for value in options if value != getattr(explorer, name))
    if isinstance(trait, _widget.Flag):
        return not getattr(explorer, name)
    if isinstance(trait, _widget.Interval):
        return (0.3, 0.7)
    if isinstance(trait, _widget.Number):
        low, high = trait.bounds
        middle = low + 0.6 * (high - low)
        return int(middle) if isinstance(trait, _widget.Whole) else round(middle, 2)
    return theory.GaussianMixture([1.0], [[0.5, 1.0]], [0.2])


@every_explorer
def test_each_control_can_be_read_set_and_observed(name, explorers):
    explorer = explorers[name]
    for control in explorer.controls:
        heard = []
        explorer.observe(heard.append, control)
        old, new = getattr(explorer, control), elsewhere(explorer, control)
        setattr(explorer, control, new)
        assert [change["new"] for change in heard] == [getattr(explorer, control)], control
        assert explorer.values[control] == getattr(explorer, control) != old
        setattr(explorer, control, old)
        explorer.unobserve(heard.append, control)


@every_explorer
def test_a_wrong_value_is_refused_and_changes_nothing(name, explorers):
    explorer = explorers[name]
    for control in explorer.controls:
        before = explorer.values
        for wrong in (math.nan, math.inf, -7, 1e9, "sideways", None, [1, 2, 3], object()):
            with pytest.raises(ConfigError):
                setattr(explorer, control, wrong)
            with pytest.raises(ConfigError):
                explorer.set(**{control: wrong})
        assert explorer.values == before


def test_a_weight_without_an_optimum_is_refused():
    for make in (widgets.exact_field, widgets.trajectories, widgets.own_data):
        with pytest.raises(ConfigError, match="weight is 1"):
            make(weight=1.0)
    assert widgets.divergence(weight=1.0).weight == 1.0  # it shows what is lost


def test_a_number_of_numpy_or_torch_is_kept_as_one_that_the_page_can_be_told():
    w = widgets.exact_field()
    for given in (np.int64(1), torch.tensor(1), np.array(1)):
        w.label = given
        assert type(w.label) is int
        assert json.dumps(w.values)
    w.method = np.str_("vecor")
    assert type(w.method) is str
    with pytest.raises(ConfigError, match=r"label is .*it must be one of"):
        w.label = np.array([0, 1])
    with pytest.raises(ConfigError, match=r"label is .*it must be one of"):
        w.label = torch.tensor([0, 1])


def test_an_attribute_that_is_no_control_is_refused():
    w = widgets.exact_field()
    with pytest.raises(ConfigError, match=r"control is 'wieght'.*Did you mean 'weight'"):
        w.wieght = 0.3
    w._mine = 3  # a private name is the caller's own affair
    w.layout.width = "50%"
    w.tooltip = "a field"


@pytest.mark.parametrize("make", [widgets.exact_field, widgets.own_data, widgets.training])
def test_what_is_no_mixture_is_refused_even_if_it_is_empty(make):
    for wrong in ([], 0, ""):
        with pytest.raises(ConfigError, match="must be a GaussianMixture"):
            make(wrong)


def test_set_takes_all_or_nothing(explorers):
    explorer = explorers["exact_field"]
    before = explorer.values
    with pytest.raises(ConfigError):
        explorer.set(t=0.1, weight=2.0)
    assert explorer.values == before
    with pytest.raises(ConfigError, match="Did you mean 'weight'"):
        explorer.set(weigth=0.1)
    with pytest.raises(ConfigError, match="Did you mean 'label'"):
        widgets.trajectories(lable=1)


@every_explorer
def test_without_javascript_a_picture_is_shown(name, explorers):
    data, _ = explorers[name]._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    picture = base64.b64decode(data["image/png"])
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(picture) < 80_000
    assert picture == explorers[name].png
    assert "weight" not in data["text/plain"] or "(" in data["text/plain"]


def test_a_notebook_holds_the_engine_and_the_networks_once(explorers):
    states = {name: explorer.get_state() for name, explorer in explorers.items()}
    assert len({state["_engine"] for state in states.values()}) == 1
    own = {
        name: len(json.dumps({k: v for k, v in state.items() if k != "_data"}))
        for name, state in states.items()
    }
    assert max(own.values()) < 5_000, own
    asking = {name for name, state in states.items() if state["_networks"]}
    assert asking == {"trajectories", "guidance"}
    assert len({states[name]["_networks"] for name in asking}) == 1


def test_the_engine_comes_back_after_all_widgets_were_closed():
    first = widgets.divergence()
    ipywidgets.Widget.close_all()
    second = widgets.divergence()
    assert second._engine.comm is not None
    assert second._engine is not first._engine
    assert second._engine.content.startswith("/* cfm_lite explorers")


def test_nothing_of_matplotlib_or_torch_is_left_behind():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    for make in EXPLORERS.values():
        make().close()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    assert plt.get_fignums() == []


def test_the_exact_field_takes_any_mixture_of_the_plane():
    mixture = theory.GaussianMixture(
        [1, 2], [[-20.0, 5.0], [10.0, -3.0]], [1.0, 0.5], labels=[3, 5]
    )
    explorer = widgets.exact_field(mixture)
    assert explorer.label == 3
    with pytest.raises(ConfigError):
        explorer.label = 0
    explorer.label = -1
    tilted = theory.GaussianMixture([1.0], [[0.0, 0.0]], covariances=[[[1.0, 0.5], [0.5, 2.0]]])
    assert widgets.exact_field(tilted)._data["mixture"]["covariances"] == [[[1.0, 0.5], [0.5, 2.0]]]


@pytest.mark.parametrize("n", [0, 65, 10**6])
def test_a_number_of_arrows_that_cannot_be_shown_is_refused(n):
    """A million in a row are 10^12 of them: the page would stand still."""
    assert widgets.exact_field(n=64)._data["n"] == 64
    with pytest.raises(ConfigError, match=f"n is {n}; .* at most 64"):
        widgets.exact_field(n=n)


def test_a_mixture_that_cannot_be_shown_is_refused():
    many = theory.GaussianMixture([1.0] * 500, [[0.0, 0.0]] * 500, [1.0] * 500)
    with pytest.raises(ConfigError, match="at most 64"):
        widgets.exact_field(many)
    with pytest.raises(ConfigError, match="3 dimensions"):
        widgets.exact_field(theory.GaussianMixture([1.0], [[0.0, 0.0, 0.0]], [1.0]))
    with pytest.raises(ConfigError, match="type int"):
        widgets.exact_field(7)
    with pytest.raises(ConfigError, match="NaN"):
        widgets.own_data(theory.GaussianMixture([1.0], [[math.nan, 0.0]], [1.0]))


def test_what_a_hand_drew_is_a_mixture_in_python():
    explorer = widgets.own_data()
    drawn, toys = explorer.drawn, toy.mixture("two_classes")
    assert torch.equal(drawn.means, toys.means)
    from_page = {
        "weights": [1, 1],
        "means": [[0, 1], [2, 3]],
        "stds": [0.5, 0.25],
        "labels": [0, 3],
    }
    explorer.set_state({"mixture": from_page})
    assert explorer.drawn.labels.tolist() == [0, 3]
    x = torch.zeros(3, 2, dtype=torch.float64)
    v = theory.optimal_velocity(explorer.drawn, x, torch.full((3,), 0.5), method="vecor")
    assert v.isfinite().all()
    with pytest.raises(ConfigError):
        explorer.mixture = {"weights": [], "means": [], "stds": [], "labels": []}
    assert explorer.drawn.labels.tolist() == [0, 3]


def test_an_exported_notebook_holds_the_engine_and_the_networks_once(explorers):
    nbformat = pytest.importorskip("nbformat")
    ipywidgets.Widget.close_all()
    made = [widgets.guidance(label=1), widgets.trajectories(), widgets.own_data()]
    cells = [
        nbformat.v4.new_code_cell(
            outputs=[nbformat.v4.new_output("display_data", one._repr_mimebundle_()[0])]
        )
        for one in made
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["widgets"] = {
        "application/vnd.jupyter.widget-state+json": ipywidgets.Widget.get_manager_state()
    }
    exported = widgets.alive(notebook)
    nbformat.validate(exported)
    pages = [cell.outputs[0].data["text/html"] for cell in exported.cells]
    text = "".join(pages)
    assert text.count("var cfmLite=") == text.count("cfmLiteNetworks = ") == 1
    assert '"label": 1' in pages[0]
    assert text.count("<script>") == text.count("</script>") == 3 + 2
    assert "widget-view" not in json.dumps(exported)
    assert "widget-view" in json.dumps(notebook)
    assert widgets.alive(nbformat.v4.new_notebook()).cells == []


def test_no_text_of_a_saved_notebook_can_end_its_script():
    model = {"_face": "</script><img>", "_data": {"a": "</script>"}, "_engine": "IPY_MODEL_e"}
    from cfm_lite.widgets import _export

    page = _export._page(model, {"e": {"content": "0"}}, [], "", 1)
    assert page.count("</script>") == 2
    assert "<img>" not in page


def test_a_prompt_sets_the_controls_and_a_wrong_one_is_refused():
    explorer = widgets.words("a small green two above a pink cross", guidance=4.0, seed=3)
    assert (explorer.size, explorer.colour, explorer.kind) == ("small", "green", "two")
    assert (explorer.relation, explorer.size2, explorer.kind2) == ("above", "", "cross")
    assert explorer.scene == captions.parse("a small green two above a pink cross")
    assert explorer.picture["caption"] == "a small green two above a pink cross"
    explorer.relation = ""
    assert explorer.scene == captions.parse("a small green two")
    for wrong, said in (("a red sevn", "did you mean 'seven'"), ("", "empty"), ("red", "no thing")):
        with pytest.raises(ConfigError, match=said):
            widgets.words(wrong)
    with pytest.raises(ConfigError, match="guidance is 99"):
        widgets.words(guidance=99.0)


def test_a_picture_from_words_is_the_one_that_the_command_samples(tiny):
    scene, away = captions.parse("a red seven left of a blue star"), "a pink seven"
    given = {"seed": 4, "guidance": 3.0, "negative": away, "prompts": (captions.sentence(scene),)}
    expected = tiny.images(draw_run(tiny, settings_of(tiny, 1, **given))[0])
    assert torch.equal(_words._sampled([scene], 3.0, 4, away), expected)
    shelf = _words._sampled([captions.parse("a pink cross"), scene], 3.0, 4, away)
    torch.testing.assert_close(shelf[1:], expected)
    pushed = _words._sampled([scene], 3.0, 4, away, weight=0.2)  # away from shuffled colours
    velocity = velocity_of(tiny, settings_of(tiny, 1, **given), captions.encode(given["prompts"]))
    x0 = noise_of((3, 32, 32), 1, 4)
    steps = torch.linspace(0, 1, tiny.recipe.sample_steps + 1)
    drawn = samplers.sample(guidance.retarget_shuffle(velocity, 0.2), x0, steps)
    torch.testing.assert_close(pushed, tiny.images(drawn))


def test_several_values_are_one_picture(monkeypatch):
    explorer, drawn = widgets.words(), []
    monkeypatch.setattr(_words, "_drawn", lambda *asked: drawn.append(asked) or {})
    explorer.set(colour="pink", kind="cross", seed=2, guidance=1.5)
    assert set(drawn) == {(explorer.scene, 1.5, 2, "", 0.0)}
    with pytest.raises(ConfigError):
        explorer.set(kind="two", seed=99)
    assert explorer.kind == "cross"


def test_the_shelf_needs_no_network_and_what_is_wrong_is_told_on_the_page(monkeypatch):
    def missing():
        raise CheckpointError("there is no network")

    monkeypatch.setattr(_words, "_run", missing)
    explorer = widgets.words("a pink cross")
    assert explorer.picture == {}
    explorer.seed = 5
    assert explorer.picture == {"problem": "there is no network"}
    explorer.seed = 0
    assert explorer.picture == {}
    explorer.set_state({"colour": "mauve"})
    assert "mauve" in explorer.picture["problem"]
    assert explorer.colour == "pink"
    explorer.set_state({"colour": "green"})
    assert (explorer.colour, explorer.picture) == ("green", {})


def test_the_shelf_is_small_and_says_what_the_reader_reads_in_it():
    data = widgets.words()._data
    assert len(data["png"]) < 200_000
    whole, pushed = len(captions.COLOURS) * len(captions.KINDS) + 4, len(captions.COLOURS) + 4
    assert len(data["shelf"]) == 2 * whole + len(_words.PUSHES) * pushed
    assert set(data["film"]) < set(data["shelf"])
    for told in data["shelf"].values():
        seen = captions.parse(" ".join(told["read"]))
        assert told["right"] == captions.shows(captions.parse(told["caption"]), seen)


def test_what_is_read_is_told_from_the_side_that_was_asked(monkeypatch):
    """The reader always says "left of" or "above"; "right of" and "below" speak from there."""
    red, blue = captions.Thing("seven", "red", "large"), captions.Thing("star", "blue", "small")
    seen = captions.Scene((blue, red), "left")
    reader = type("Told", (), {"read": lambda self, x: [seen] * len(x)})()
    monkeypatch.setattr(_words, "reader_for", lambda: reader)
    asked = [captions.parse(f"a red seven {way} of a blue star") for way in ("right", "left")]
    right, left = _words._told(torch.zeros(2, 3, 32, 32), asked)
    assert right["read"] == ["a large red seven", "right of a small blue star"]
    assert left["read"] == ["a small blue star", "left of a large red seven"]
    assert (right["right"], left["right"]) == (True, False)


def test_the_shelf_was_drawn_by_the_network_that_ships():
    with Image.open(_words.SHELF) as image:
        assert image.text["weights"] == pretrained.run_of("words").weights, (
            "run: python -m cfm_lite.widgets._words"
        )


def test_the_still_of_the_words_explorer_shows_the_shelf_that_ships():
    with Image.open(_words.SHELF.with_name("words.png")) as image:
        assert image.text["shelf"] == hash_of_file(_words.SHELF), (
            "run: python -m tools.explorers build/js/node_modules/.bin chromium"
        )
