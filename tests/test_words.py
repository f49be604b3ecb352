"""`words`: what a caption means, how it is said, and the pictures that show it."""

import itertools
import json

import numpy as np
import pytest
import torch

from cfm_lite import cli, guidance, runs, viz
from cfm_lite.data import captions, words
from cfm_lite.data.captions import COLOURS, DIGITS, KINDS, RELATIONS, SHAPES, SIZES, Scene, Thing
from cfm_lite.data.datasets import dataset
from cfm_lite.errors import ConfigError
from cfm_lite.evaluate.measures import measure
from cfm_lite.evaluate.reader import reader_for
from cfm_lite.evaluate.samples import load_samples
from cfm_lite.runs.recipe import recipe
from cfm_lite.runs.sampling import captions_in_turn, draw_run, settings_of, velocity_of

RED, BLUE = Thing("seven", "red"), Thing("star", "blue")


def some_scenes(n=300, held_out=None):
    g = np.random.default_rng(0)
    return list(itertools.islice(words.scenes(g, held_out), n))


def test_there_is_enough_to_say():
    assert (len(COLOURS), len(DIGITS), len(SHAPES), len(SIZES), len(RELATIONS)) == (8, 10, 5, 2, 4)
    assert captions.FORMS == 5


@pytest.mark.parametrize("form", range(captions.FORMS))
def test_parsing_a_sentence_gives_its_scene(form):
    for scene in some_scenes():
        for synonyms in ((), (1,) * 8):
            said = captions.sentence(scene, form, synonyms)
            assert captions.parse(said) == scene, said
            assert captions.decode(captions.encode([said])) == [said]
            assert len(said.split()) <= captions.LENGTH


@pytest.mark.parametrize(
    ("said", "scene"),
    [
        ("a red seven", Scene((RED,))),
        ("Red 7!", Scene((RED,))),
        ("a red seven left of a blue star", Scene((RED, BLUE), "left")),
        ("left of a blue star is a red seven", Scene((RED, BLUE), "left")),
        ("a blue star with a red seven to its left", Scene((RED, BLUE), "left")),
        ("a blue star with a red seven above it", Scene((RED, BLUE), "above")),
        ("a blue star with a red seven left of it", Scene((RED, BLUE), "left")),
        ("a blue star, to its left a red seven", Scene((RED, BLUE), "left")),
        ("a red seven left of its blue star", Scene((RED, BLUE), "left")),
        ("it is a red seven under a blue star", Scene((RED, BLUE), "below")),
        ("a red big seven", Scene((RED._replace(size="large"),))),
        ("a big violet disc", Scene((Thing("circle", "purple", "large"),))),
    ],
)
def test_captions_mean_what_they_say(said, scene):
    assert captions.parse(said) == scene


def test_a_picture_shows_a_caption_from_whichever_thing_one_looks():
    seen = Scene((RED._replace(size="small"), BLUE._replace(size="large")), "left")
    for said in ("a red 7 left of a blue star", "a large blue star right of a red seven"):
        assert captions.shows(captions.parse(said), seen)
    for said in (
        "a red 7 right of a blue star",
        "a blue star left of a red seven",
        "a blue 7 left of a red star",
        "a large red seven left of a blue star",
        "a red seven above a blue star",
        "a red six left of a blue star",
        "a red seven",
    ):
        assert not captions.shows(captions.parse(said), seen), said


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("a reed seven", "unknown word 'reed'; did you mean 'red'"),
        ("a red xylophone", "unknown word 'xylophone'; colours are .*; things are .*cross"),
        ("a redd sevn", "unknown words 'redd', 'sevn'; did you mean 'red', 'seven'"),
        ("a redd redd sevn", "unknown words 'redd', 'sevn'; did you mean 'red', 'seven'"),
        ("a brown sevn", "words 'brown', 'sevn'; did you mean 'seven'. Colours are red, .*pink"),
        ("a brown seven", "unknown word 'brown'; colours are red, .*things are zero, .*sizes are"),
        ("a white seven", "unknown word 'white'; colours are"),  # "with" is no colour
        ("a grey box", "unknown word 'grey'; colours are"),
        ("a purpel 7 abov a litle disk", "did you mean 'purple', 'above', 'little', 'disc'"),
        ("a red seven é", "unknown word 'é'"),
        ("a réd seven", "unknown word 'réd'; did you mean 'red'"),
        ("a re\u0301d seven", "unknown word 're\u0301d'; did you mean 'red'"),
        ("日本", "unknown word '日本'"),
        ("a red 10", "unknown word '10'"),
        ("a red 7th", "unknown word '7th'"),
        ("it's a red seven", 'unknown word "it\'s"'),
        ("a red seven 🦊", "unknown word '🦊'"),
        ("", "empty"),
        ("...", "empty"),
        ("a seven", "no colour before 'seven'; say one there, such as 'red seven'"),
        ("seven red", "no colour before 'seven'; say one there, such as 'red seven'"),
        ("a red blue seven", "gives a thing the colours 'red' and 'blue'"),
        ("a small large red seven", "gives a thing the sizes 'small' and 'large'"),
        ("a red seven left of right of a blue star", "says 'left' and 'right'; say once"),
        ("a red seven left of left of a blue star", "says 'left' and 'left'; say once"),
        ("red seven small", "'small' before no thing; say size and colour before their thing"),
        ("a red left of a blue star is a seven", "'red' before no thing"),
        ("a red seven a blue star left", "does not say of which thing the other lies 'left'"),
        ("to its left a red seven a blue star", "does not say of which thing"),
        ("a picture of red", "'red' before no thing"),
        ("there is a", "names 0 things"),
        ("a red seven a blue star", "2 things and no relation"),
        ("a red seven left of", "names 1 things"),
        ("red seven blue star pink one left", "names 3 things"),
        ("a red seven " * 6, "18 words"),
        (7, "type int"),
    ],
)
def test_captions_that_cannot_be_drawn_are_refused_in_one_line(said, message):
    with pytest.raises(ConfigError, match=message) as error:
        captions.parse(said)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("said", ["“A red, 7…”", "'a' red-7!", "a red7", "a\tred—seven\n"])
def test_signs_between_words_are_no_words(said):
    told = captions.decode(captions.encode([said]))
    assert told in (["a red 7"], ["a red seven"])


def test_one_text_is_no_list_of_captions():
    with pytest.raises(ConfigError, match="a list of texts"):
        captions.encode("a red seven")


def test_a_picture_depends_on_seed_split_and_number_alone():
    few, more = words.load("train", 20), words.load("train", 40)
    assert torch.equal(few.x1, more.x1[:20])
    assert torch.equal(few.y, more.y[:20])
    assert few.captions == more.captions[:20]
    for other in (words.load("train", 20, seed=1), words.load("seen", 20)):
        assert not torch.equal(few.x1, other.x1)
    assert few.x1.shape == (20, 3, 32, 32)
    assert few.x1.dtype == torch.float32
    assert -1 <= float(few.x1.min()) < float(few.x1.max()) <= 1


def test_training_shows_no_held_out_combination_and_both_are_common():
    assert not any(map(captions.is_held_out, some_scenes(1000, False)))
    assert all(map(captions.is_held_out, some_scenes(200, True)))
    drawn = some_scenes(3000)
    share = sum(map(captions.is_held_out, drawn)) / len(drawn)
    assert 0.1 < share < 0.3
    for digit in DIGITS:  # one colour of each
        hidden = [c for c in COLOURS if captions.is_held_out(Scene((Thing(digit, c),)))]
        assert len(hidden) == 1
    assert {thing.colour for scene in some_scenes(1000, False) for thing in scene.things} == {
        *COLOURS
    }
    assert not any(captions.is_held_out(Scene((Thing(s, c),))) for s in SHAPES for c in COLOURS)


def test_held_out_pairs_are_the_same_from_whichever_thing_one_looks():
    for scene in some_scenes(500):
        if scene.relation:
            turned = Scene(scene.things[::-1], captions.OPPOSITE[scene.relation])
            assert captions.is_held_out(turned) == captions.is_held_out(scene)


def centres(scene, g):
    """The centre of all pixels that are nearest to each thing's colour."""
    picture = words.render(scene, g).transpose(1, 2, 0)
    for thing in scene.things:
        near = np.linalg.norm(picture - np.array(words.RGB[thing.colour]), axis=-1) < 0.2
        yield np.argwhere(near).mean(0)


def test_things_lie_where_the_caption_says():
    g = np.random.default_rng(1)
    for relation, (axis, sign) in {
        "left": (1, -1), "right": (1, 1), "above": (0, -1), "below": (0, 1),
    }.items():  # fmt: skip
        for sizes in itertools.product(SIZES, SIZES):
            scene = Scene(
                (Thing("square", "red", sizes[0]), Thing("circle", "green", sizes[1])), relation
            )
            first, second = centres(scene, g)
            apart = sign * (first - second)
            assert apart[axis] > 7, (relation, sizes)
            assert abs(apart[1 - axis]) < 6


@pytest.mark.parametrize("kind", KINDS)
def test_a_large_thing_covers_more_than_a_small_one_and_both_are_seen(kind):
    g = np.random.default_rng(2)
    ink = {
        size: np.mean([
            (words.render(Scene((Thing(kind, "yellow", size),)), g)[0] > 0.6).sum() for _ in range(8)
        ])
        for size in SIZES
    }  # fmt: skip
    assert ink["small"] > 8
    assert ink["large"] > 1.4 * ink["small"]


def test_an_unknown_split_is_refused():
    with pytest.raises(ConfigError, match="Did you mean 'train'"):
        words.load("trian", 1)


def test_a_run_on_captions_draws_what_is_asked_and_can_be_resumed(tmp_path):
    small = {"hidden_size": 8, "depth": 1, "num_heads": 2, "steps": 2, "batch": 8, "shard": 8}
    data = dataset("words", limit=16)
    runs.train(recipe("words", **small), data, out=tmp_path, progress=False)
    run = runs.Run.open(tmp_path)
    assert run.spec.condition == "captions"
    settings = settings_of(run, 3, steps=2, prompts=("a red seven", "a blue star"))
    x, y = draw_run(run, settings)
    assert x.shape == (3, 3, 32, 32)
    assert captions.decode(y) == ["a red seven", "a blue star", "a red seven"]
    again, other = draw_run(run, settings)[0], draw_run(run, settings_of(run, 3, steps=2))
    assert torch.equal(x, again)
    assert captions.decode(other[1]) == captions.decode(captions_in_turn(3))
    more = recipe("words", **{**small, "steps": 3})
    assert runs.train(more, data, out=tmp_path, resume=True, progress=False).step == 3


def test_every_method_trains_on_words():
    small = {"hidden_size": 8, "depth": 1, "num_heads": 2, "steps": 1, "batch": 8, "shard": 8}
    data = dataset("words", limit=16)
    for method in (
        "delta_fm", "vecor", "vecor_latent", "dispersive", "contrast_by_condition",
    ):  # fmt: skip
        chosen = recipe("words", method=method, **small)
        assert runs.train(chosen, data, progress=False).step == 1


def test_pictures_stand_over_their_captions():
    shown = words.load("seen", 7)
    figure = viz.captioned(shown.x1, shown.captions)
    said = [" ".join(text.get_text().split()) for axes in figure.axes for text in axes.texts]
    assert said == shown.captions
    with pytest.raises(ConfigError, match="one for each"):
        viz.captioned(shown.x1, shown.captions[:3])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words") / "run"
    small = {"hidden_size": 8, "depth": 1, "num_heads": 2, "steps": 1, "batch": 8, "shard": 8}
    runs.train(recipe("words", **small), dataset("words", limit=16), out=folder, progress=False)
    return folder


def test_networks_learn_pictures_of_unit_variance_and_draw_them_back(run):
    data = dataset("words", limit=2000)
    pictures = words.load("train", 2000).x1
    assert abs(data.x1.mean()) < 0.1
    assert abs(data.x1.std() - 1) < 0.1
    torch.testing.assert_close(data.images.x1, pictures)
    torch.testing.assert_close(runs.Run.open(run).images(data.x1), pictures)


def test_pictures_of_a_run_are_scored_by_the_reader(run, capsys):
    """Apart for seen and held-out prompts, and for one and two things; drawn in turn."""
    assert cli.main(["sample", "--checkpoint", str(run), "--num", "12", "--steps", "1"]) == 0
    assert cli.main(["evaluate", "--samples", str(run)]) == 0
    said = capsys.readouterr().out
    rows = json.loads((run / "metrics.json").read_text())
    assert {row["metric"] for row in rows} == {"right", "kinds", "colours", "sizes", "relation"}
    counts = {(row["prompts"], row["things"]): row["count"] for row in rows}
    assert sum(count for (prompts, _), count in counts.items() if prompts == "seen") == 6
    assert sum(counts.values()) == 12
    assert all(row["features_hash"] == reader_for().fingerprint for row in rows)
    assert all(row["codec"] == "Standard" for row in rows)
    for words_ in ("reader of words", "seen, two things", "held out, ", "relation"):
        assert words_ in said


def test_real_pictures_score_as_right_in_the_lab():
    data = dataset("words", limit=16)
    values = measure(data.held_x1[:60], data.held_y[:60], data, None)
    assert values["right_seen"] > 0.9
    assert set(values) == {
        f"{part}_seen" for part in ("right", "kinds", "colours", "sizes", "relation")
    }


def test_samples_without_prompts_show_seen_and_held_out_combinations_in_turn():
    said = captions.decode(captions_in_turn(9, seed=2))
    assert [captions.is_held_out(captions.parse(text)) for text in said] == [False, True] * 4 + [
        False
    ]
    assert said[:5] == captions.decode(captions_in_turn(5, seed=2))


def test_a_picture_alone_is_drawn_for_captions(run, tmp_path, capsys):
    few = ["sample", "--checkpoint", str(run), "--steps", "1", "--prompt", "a red 7", "a blue star"]
    assert cli.main([*few, "--out", str(tmp_path / "new.png")]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["new.png"]
    assert "picture in" in capsys.readouterr().out


def test_a_prompt_alone_asks_the_network_that_ships(tmp_path, capsys):
    out = tmp_path / "seven.png"
    assert cli.main(["sample", "--steps", "1", "--prompt", "a red 7", "--out", str(out)]) == 0
    assert out.read_bytes()[:4] == b"\x89PNG"
    assert "picture in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--prompt", "a red blue seven"], "the colours 'red' and 'blue'"),
        (["--prompt", "a red seven a blue star"], "2 things and no relation"),
        (["--prompt", "seven"], "no colour before 'seven'"),
        (["--prompt", "we see it"], "names 0 things"),
        (["--prompt", "a red seven", "--negative", ""], "negative is empty"),
    ],
)
def test_a_prompt_that_names_no_picture_is_refused_before_anything_is_drawn(
    tmp_path, capsys, more, said
):
    assert cli.main(["sample", *more, "--out", str(tmp_path / "x.png")]) == 2
    assert said in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_a_negative_prompt_may_name_a_colour_alone(run):
    opened = runs.Run.open(run)
    assert settings_of(opened, 1, prompts=("a red seven",), negative="blue").negative == "blue"


def test_four_pictures_of_each_prompt_are_drawn(run, tmp_path):
    few = ["sample", "--checkpoint", str(run), "--steps", "1", "--prompt", "a red 7", "a blue star"]
    assert cli.main([*few, "--out", str(tmp_path / "new.npz")]) == 0
    _, y, _ = load_samples(tmp_path / "new.npz")
    assert captions.decode(y) == ["a red 7", "a blue star"] * 4


def test_a_negative_prompt_takes_the_place_of_the_empty_one(run):
    opened = runs.Run.open(run)
    with torch.no_grad():
        for parameter in opened.model.parameters():  # one step leaves hardly a trace of captions
            parameter.normal_(std=0.2)
    asked = {"prompts": ("a red seven",), "steps": 2, "guidance": 3.0}
    y = captions.encode(["a red seven"] * 2)
    away = captions.encode(["a blue star"] * 2)
    noise = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    t = torch.full((2,), 0.5)
    velocity = velocity_of(opened, settings_of(opened, 2, **asked, negative="a blue star"), y)
    expected = guidance.cfg(opened.model, y, 3.0, negative=away)
    torch.testing.assert_close(velocity(noise, t), expected(noise, t))
    assert not torch.allclose(velocity(noise, t), guidance.cfg(opened.model, y, 3.0)(noise, t))
