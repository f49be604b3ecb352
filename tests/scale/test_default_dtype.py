"""torch's default type is the user's affair: under float64 everything trains and samples, and draws
in float32 stay as they were.
"""

import contextlib
import functools
import json
import subprocess
import sys

import pytest
import torch

from cfm_lite import pretrained, runs
from cfm_lite.course.nb06_dispersive import free_of_charge
from cfm_lite.data import digits, teachers, words
from cfm_lite.data.datasets import dataset
from cfm_lite.data.latents.codec import open_codec, tiny_vae
from cfm_lite.data.teachers import train_teacher
from cfm_lite.evaluate.clip import ClipScore
from cfm_lite.evaluate.inception import StandIn
from cfm_lite.evaluate.judges import assess, judge_for, train_judge
from cfm_lite.evaluate.reader import reader_for, train_reader
from cfm_lite.lab.arms import ARMS, draw_samples
from cfm_lite.lab.diagnostics import field_values, path_values
from cfm_lite.models import encoders
from cfm_lite.models.text import ClipText
from cfm_lite.runs.recipe import recipe
from cfm_lite.runs.sampling import draw_part, draw_run, settings_of
from cfm_lite.widgets import _features
from tests.networks import same_parameters, tiny_clip

PROGRAM = """
import sys, torch
if sys.argv[1] == "float64":
    torch.set_default_dtype(torch.float64)
from cfm_lite import draws, guidance, metrics, objective, perturbations, samplers
from cfm_lite.data import digits, toy
from cfm_lite.data.batches import batches
from cfm_lite.models import MLP, SiT
from cfm_lite.objective import Contrastive, Dispersive
from cfm_lite.training import Trainer

g = lambda: torch.Generator().manual_seed(0)
for name in toy.TOYS:
    x1, y = toy.load(name, 64, g())
    assert x1.dtype == torch.float32
    print(name, x1.double().sum().item())
print(draws.drop_labels(torch.zeros(64, dtype=torch.long), 0.5, 1, generator=g()).sum().item())
for law in (draws.uniform_time, draws.logit_normal_time, draws.lognormal_time):
    print(law(8, generator=g()).double().sum().item())
print(perturbations.channel_shuffle(torch.arange(48.0, dtype=torch.float32).reshape(4, 3, 2, 2), generator=g()).flatten().tolist())
print(perturbations.expected_map(perturbations.crop_resize, (1, 3, 3), draws=3).sum().item())
print(metrics.sliced_wasserstein(x1, x1 + 1, n_projections=5, generator=g()).item())
x1, y = toy.load("two_classes", 64, g())
for term in (Dispersive(0.5, block=1), Contrastive(0.5, block=1)):
    trainer = Trainer(objective.vecor(MLP(2, 16, 2, 2), 0.1, perturb=perturbations.additive_noise).plus(term))
    assert torch.isfinite(list(trainer.run(batches(x1, y, size=16), 2))[-1]["loss"])
image, label = digits.load("train")
sit = SiT(input_size=8, patch_size=4, in_channels=1, hidden_size=8, depth=1, num_heads=2, num_classes=10)
trainer = Trainer(objective.vecor(sit, 0.1, perturb=perturbations.crop_resize))
list(trainer.run(batches(image, label, size=8), 2))
ts = torch.linspace(0, 1, 4)
samples = samplers.sample(guidance.cfg(trainer.ema, 3, 2.0), torch.randn(2, 1, 8, 8), ts)
assert samples.isfinite().all()
assert samplers.sample_sde(trainer.ema, torch.randn(2, 1, 8, 8), torch.linspace(0, 0.96, 4)).isfinite().all()
assert samplers.log_prob(MLP(2, 16, 2), torch.randn(3, 2), ts).isfinite().all()
"""


@pytest.fixture(scope="module")
def printed():
    def run(dtype):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", PROGRAM, dtype],
            capture_output=True,
            text=True,
            timeout=280,
        )
        assert not done.returncode, done.stderr[-3000:]
        return done.stdout.splitlines()

    return run


def test_under_float64_everything_trains_and_draws_what_it_draws_under_float32(printed):
    assert printed("float64") == printed("float32")


@contextlib.contextmanager
def under_float64():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def images(side=32):
    g = torch.Generator().manual_seed(0)
    return torch.randint(256, (2, 3, side, side), dtype=torch.uint8, generator=g)


def floats(side=32):
    return images(side).to(torch.float32) / 255


def shown_by_the_reader(place):
    reader_for.cache_clear()
    return reader_for()(words.load("seen", 20).x1).values()


def told_by_a_new_reader(place):
    return train_reader(pictures=150, epochs=1).state_dict().values()


def drawn_by_an_encoder(place):
    torch.manual_seed(0)
    return [encoders.teacher("vit_tiny_patch16_224", grid=1, pretrained=False)(floats())]


def coded(open_one):
    codec = open_one()
    return codec.moments(images()), codec.encode(floats()), codec.decode(floats(4)[:, [0, 1, 2, 0]])


def saved_codec(place):
    tiny_vae().save_pretrained(place)
    return open_codec(str(place))


def scored_by_clip(place):
    pytest.importorskip("transformers", reason="not run: pip install 'cfm-lite[text]'")
    place, texts = place / "clip", ["a dog", "a cat"]
    if not place.exists():
        tiny_clip(place)
    return ClipScore(place)(floats(), texts), ClipText(place)(texts)


def told_by_an_explorer(_):
    text = json.dumps(_features._data.__wrapped__()["features"]).encode()
    return [torch.frombuffer(bytearray(text), dtype=torch.uint8)]


def drawn_by_a_run(_):
    run = pretrained.run_of("toy_vecor")
    return draw_run(run, settings_of(run, 5, steps=3, guidance=2.0, debias=True))


def drawn_in_parts(_):
    run = pretrained.run_of("toy_fm")
    return [draw_part(run, settings_of(run, 5, steps=3, solver="sde"), part=0)]


def traced_by_the_lab(_):
    run = pretrained.run_of("toy_fm")
    drawn = draw_samples(ARMS["fm"], run, dataset("two_classes"), torch.arange(6) % 2, steps=3)
    paths = path_values(
        ARMS["fm"], run, dataset("two_classes"), drawn, torch.arange(6) % 2, 3, "heun"
    )
    fields = field_values(ARMS["fm"], run, dataset("two_classes"))
    return [drawn, torch.tensor([*paths.values(), *fields.values()], dtype=torch.float32)]


NETWORKS = {
    "samples of a run": drawn_by_a_run,
    "samples in parts": drawn_in_parts,
    "samples and paths of the lab": traced_by_the_lab,
    "the explorer of features": told_by_an_explorer,
    "the reader of words": shown_by_the_reader,
    "a new reader of words": told_by_a_new_reader,
    "the judge": lambda place: assess(judge_for("digits"), digits.load("judge_test")[0][:9]),
    "a network that ships": lambda _: (
        pretrained._loaded.__wrapped__("toy_fm").state_dict().values()
    ),
    "a new judge": lambda place: train_judge("digits", limit=99).state_dict().values(),
    "a new teacher": lambda place: train_teacher("digits", limit=99).state_dict().values(),
    "the stand-in": lambda place: StandIn()(images()),
    "an encoder": drawn_by_an_encoder,
    "the tiny codec": lambda place: coded(lambda: open_codec("tiny")),
    "a codec": lambda place: coded(lambda: saved_codec(place / "vae")),
    "CLIP": scored_by_clip,
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_that_is_read_or_measures_is_the_same_under_float64(name, tmp_path):
    expected = list(NETWORKS[name](tmp_path))
    with under_float64():
        found = list(NETWORKS[name](tmp_path))
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(expected, found))


@pytest.mark.filterwarnings("error")
def test_under_float64_the_cached_teacher_is_read_and_its_file_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(teachers, "cache_root", lambda: tmp_path)
    monkeypatch.setattr(teachers, "train_teacher", functools.partial(train_teacher, limit=99))
    first = teachers.teacher_for.__wrapped__("digits")
    (path,) = tmp_path.glob("teachers/*")
    content = path.read_bytes()
    with under_float64():
        again = teachers.teacher_for.__wrapped__("digits")
    assert path.read_bytes() == content
    assert same_parameters(first, again)


def drawn(run, **how):
    return draw_run(run, settings_of(run, 32, steps=4, **how))[0]


@pytest.mark.parametrize("solver", ["euler", "sde"])
def test_a_network_that_ships_draws_under_float64_what_it_draws_under_float32(solver):
    expected = drawn(pretrained.run_of("toy_vecor"), solver=solver)
    with under_float64():
        found = drawn(pretrained.run_of("toy_vecor"), solver=solver)
    assert torch.equal(found, expected)
    assert found.dtype == torch.float32


def test_a_run_that_was_trained_under_float64_is_drawn_under_either_type(tmp_path):
    short = recipe("toy", steps=2, batch=32, shard=32, hidden_size=16)
    with under_float64():
        runs.train(short, dataset("two_classes", points=64), out=tmp_path, progress=False)
        wide = drawn(runs.Run.open(tmp_path))
    assert wide.dtype == torch.float64
    torch.testing.assert_close(wide.float(), drawn(runs.Run.open(tmp_path)))


@pytest.mark.filterwarnings("error")
def test_an_arm_is_measured_under_float64_on_what_it_is_measured_on_under_float32():
    def measured():
        run, data = pretrained.run_of("toy_vecor"), dataset("two_classes", points=64)
        return field_values(ARMS["vecor"], run, data)

    expected = measured()
    with under_float64():
        assert measured() == expected


def test_under_float64_an_exercise_that_asks_a_network_that_ships_is_checked():
    with under_float64():
        assert free_of_charge.__wrapped__({"input", "time_2", "label_table", "fc2"}) is None


def test_a_run_in_float64_is_sampled_in_float64_from_the_noise_of_float32():
    run = pretrained.run_of("toy_fm")
    expected, _ = draw_run(run, settings_of(run, 5, steps=3))
    run.model.double()
    with under_float64():
        found, _ = draw_run(run, settings_of(run, 5, steps=3))
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.float(), expected)
