"""Samples of a run: repeatable, resumable, in ADM's file, and never of mixed settings."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from cfm_lite.data.latents.codec import Codec, tiny_vae
from cfm_lite.errors import CheckpointError, ConfigError, DataError
from cfm_lite.runs import Run, Spec
from cfm_lite.runs.sampling import Settings, labels_of, velocity_of
from cfm_lite.scale import sample
from cfm_lite.scale.sample import sample_imagenet
from cfm_lite.scale.train import Options, train_imagenet
from tests.scale.conftest import SMALL

FEW = Settings(num=10, steps=4, batch=4)


def images_of(path):
    with np.load(path, allow_pickle=False) as file:
        return file["arr_0"], file["arr_1"]


def go(run, out, settings=FEW, **how):
    return images_of(sample_imagenet(run, out, settings, progress=False, **how))


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    return go(run, tmp_path_factory.mktemp("samples") / "S")


def test_the_file_is_what_adm_s_evaluator_reads(whole):
    x, y = whole
    assert x.shape == (10, 32, 32, 3)
    assert x.dtype == np.uint8
    assert y.tolist() == [i % 3 for i in range(10)]
    assert len(np.unique(x.reshape(10, -1), axis=0)) == 10


def test_an_interrupted_sampling_goes_on_to_the_same_file(run, whole, tmp_path, monkeypatch):
    drawn = []
    plain = sample._draw

    def draw(trained, codec, settings, part):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(part)
        return plain(trained, codec, settings, part)

    monkeypatch.setattr(sample, "_draw", draw)
    with pytest.raises(KeyboardInterrupt):
        go(run, tmp_path / "S")
    monkeypatch.setattr(sample, "_draw", lambda *args: (drawn.append(args[3]), plain(*args))[1])
    x, y = go(run, tmp_path / "S")
    assert drawn == [0, 1, 2]
    assert np.array_equal(x, whole[0])
    assert np.array_equal(y, whole[1])
    assert sorted(path.name for path in (tmp_path / "S").iterdir()) == [
        "samples.npz",
        "samples.png",
        "settings.json",
    ]
    go(run, tmp_path / "S")  # done already: nothing is drawn
    assert drawn == [0, 1, 2]


def test_a_damaged_part_is_drawn_again(run, whole, tmp_path, monkeypatch):
    gather = sample._gather
    monkeypatch.setattr(sample, "_gather", lambda *args: None)
    with pytest.raises(FileNotFoundError):
        go(run, tmp_path / "S")
    part = tmp_path / "S" / "part-00001.npy"
    part.write_bytes(part.read_bytes()[:-100])
    monkeypatch.setattr(sample, "_gather", gather)
    assert np.array_equal(go(run, tmp_path / "S")[0], whole[0])


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"steps": 5},
        {"solver": "heun"},
        {"solver": "sde"},
        {"guidance": 2.0},
        {"debias": True},
        {"batch": 5},
        {"labels": "random"},
    ],
)
def test_every_setting_changes_the_samples_and_other_settings_are_refused(
    run, whole, tmp_path, change
):
    settings = Settings(**{"num": 10, "steps": 4, "batch": 4} | change)
    x, y = go(run, tmp_path / "S", settings)
    assert not np.array_equal(x, whole[0]) or not np.array_equal(
        y, whole[1]
    )  # a network of six steps hardly sees its labels
    with pytest.raises(ConfigError, match=f"{next(iter(change))}.* differ"):
        go(run, tmp_path / "S")


def grown(run, out, *numbers, **how):
    """The samples after as many were asked for, one number after the other, and which parts were
    drawn.
    """
    drawn, plain = [], sample._draw
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample, "_draw", lambda *args: (drawn.append(args[3]), plain(*args))[1])
        for number in numbers:
            content = go(run, out, dataclasses.replace(FEW, num=number, **how))
    return content, drawn


@pytest.mark.parametrize("labels", ["turn", "random", "2,0"])
@pytest.mark.parametrize(("first", "drawn"), [(8, [0, 1, 2]), (6, [0, 1, 1, 2]), (3, [0, 0, 1, 2])])
def test_a_finished_folder_grows_to_what_would_have_been_drawn_at_once(
    run, tmp_path, first, drawn, labels
):
    (at_once, y), _ = grown(run, tmp_path / "S", 10, labels=labels)
    (bit_by_bit, y_too), parts = grown(run, tmp_path / "T", first, 10, labels=labels)
    assert np.array_equal(bit_by_bit, at_once)
    assert np.array_equal(y_too, y)
    assert parts == drawn  # whole parts are kept, one that was cut short is not
    names = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in "ST"]
    assert names[0] == names[1] == ["samples.npz", "samples.png", "settings.json"]
    assert all(
        (tmp_path / "S" / name).read_bytes() == (tmp_path / "T" / name).read_bytes()
        for name in names[0][1:]
    )


def test_growing_may_be_stopped_and_asking_for_less_draws_nothing(
    run, whole, tmp_path, monkeypatch
):
    grown(run, tmp_path / "S", 5)
    plain = sample._gather
    monkeypatch.setattr(sample, "_gather", lambda *args: None)
    grown(run, tmp_path / "S", 10)  # the parts are there, the npz holds five still
    assert sample.count_samples(tmp_path / "S") == 5
    monkeypatch.setattr(sample, "_gather", plain)
    (x, _), parts = grown(run, tmp_path / "S", 10, 7, 10)
    assert parts == []
    assert np.array_equal(x, whole[0])


def test_a_damaged_npz_is_not_grown_from(run, tmp_path):
    grown(run, tmp_path / "S", 8)
    file = tmp_path / "S" / "samples.npz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"is damaged.*Remove it"):
        grown(run, tmp_path / "S", 10)
    file.unlink()
    assert grown(run, tmp_path / "S", 10)[1] == [0, 1]  # part 2 was drawn before


@pytest.mark.parametrize(
    ("labels", "words"),
    [("none", "turn, random"), ("3", "classes are 0 to 2"), ("1,,2", "commas"), ("-1", "commas")],
)
def test_labels_that_are_none_are_refused_before_anything_is_written(run, tmp_path, labels, words):
    with pytest.raises(ConfigError, match=words):
        go(
            run,
            tmp_path / "S",
            dataclasses.replace(FEW, labels=labels)
            if labels == "3"
            else Settings(num=3, labels=labels),
        )
    assert not (tmp_path / "S").exists()


def test_random_labels_are_uniform_and_depend_on_seed_and_part_alone():
    many = Settings(num=3000, batch=100, labels="random")
    of = Run(SMALL, torch.nn.Identity(), spec=Spec((4, 4, 4), 3, vae="tiny"))
    y = torch.cat([labels_of(of, many, part) for part in range(30)])
    assert all(900 < int((y == c).sum()) < 1100 for c in range(3))
    assert torch.equal(labels_of(of, dataclasses.replace(many, num=2950), 29), y[2900:2950])
    assert not torch.equal(labels_of(of, dataclasses.replace(many, seed=1), 0), y[:100])


@pytest.mark.parametrize(
    "change",
    [
        {"interval": (0.8, 0.2), "guidance": 2.0},
        {"debias": True},
        {"labels": "7"},
        {"vae": "nowhere"},
    ],
)
def test_what_is_refused_leaves_nothing_and_the_right_command_works_there(data, tmp_path, change):
    train_imagenet(
        SMALL.changed(method="fm", steps=1), data, Options(tmp_path / "fm", progress=False)
    )
    how = {"vae": change.pop("vae")} if "vae" in change else {}
    with pytest.raises((ConfigError, DataError)):
        go(
            tmp_path / "fm",
            tmp_path / "S",
            Settings(**{"num": 2, "steps": 1, "batch": 2} | change),
            **how,
        )
    assert not (tmp_path / "S").exists()
    assert len(go(tmp_path / "fm", tmp_path / "S", Settings(num=2, steps=1, batch=2))[0]) == 2


def test_the_interval_limits_guidance(run, tmp_path):
    # a short training: the labels matter so little that only a large scale shows in whole numbers
    guided = Settings(num=4, steps=4, batch=4, guidance=1000.0)
    x, _ = go(run, tmp_path / "a", guided)
    early, _ = go(
        run, tmp_path / "b", Settings(num=4, steps=4, batch=4, guidance=1000.0, interval=(0.0, 0.6))
    )
    plain, _ = go(run, tmp_path / "c", Settings(num=4, steps=4, batch=4))
    assert not np.array_equal(x, early)
    assert not np.array_equal(early, plain)  # three of four Euler steps begin inside the interval
    with pytest.raises(ConfigError, match="4 steps of euler evaluate the network at no time in it"):
        Settings(num=4, steps=4, batch=4, guidance=3.0, interval=(0.9, 0.95))


def test_the_samples_are_the_averaged_model_s(run, whole, codec):
    trained = Run.open(run)
    ema = {k[4:]: v for k, v in torch_weights(run).items() if k.startswith("ema.")}
    assert all(torch.equal(value, ema[name]) for name, value in trained.model.state_dict().items())
    from cfm_lite.draws import keyed_generator

    x = torch.randn(4, 4, 4, 4, generator=keyed_generator("cpu", 0, "samples", 0))
    y = torch.arange(4) % 3
    with torch.no_grad():
        for k in range(4):
            x = x + 0.25 * trained.model(x, torch.full((4,), k / 4), y)
    expected = codec.pixels(x).permute(0, 2, 3, 1).numpy()
    assert np.abs(expected.astype(int) - whole[0][:4]).max() <= 1


def torch_weights(run):
    from cfm_lite.engine import checkpoint

    return checkpoint.load(checkpoint.latest(run / "checkpoints")).weights


def test_another_checkpoint_another_vae_and_a_foreign_folder_are_refused(
    run, whole, tmp_path, monkeypatch
):
    with pytest.raises(CheckpointError, match=r"config\.json"):
        go(tmp_path, tmp_path / "S")
    Codec(tiny_vae(3), "x").vae.save_pretrained(tmp_path / "vae")
    with pytest.raises(DataError, match="not the one that made the latents"):
        go(run, tmp_path / "S", vae=str(tmp_path / "vae"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(ConfigError, match="not empty"):
        go(run, tmp_path / "mine")


def test_a_step_folder_is_sampled_as_its_run(run, whole, tmp_path):
    assert np.array_equal(go(run / "checkpoints" / "step-00000006", tmp_path / "S")[0], whole[0])


def test_debiasing_delta_fm_uses_the_mean_latent_and_fm_has_nothing_to_undo(data, tmp_path):
    recipe = SMALL.changed(method="delta_fm", steps=2, weight=0.3)
    train_imagenet(recipe, data, Options(tmp_path / "run", progress=False))
    settings = Settings(num=2, steps=1, batch=2, debias=True)
    trained = Run.open(tmp_path / "run")
    assert torch.equal(trained.mean(), data.mean)
    x, t, y = torch.randn(2, 4, 4, 4), torch.full((2,), 0.5), torch.tensor([0, 1])
    got = velocity_of(trained, settings, y)(x, t)
    torch.testing.assert_close(got, 0.7 * trained.model(x, t, y) + 0.3 * data.mean)
    train_imagenet(
        SMALL.changed(method="fm", steps=2), data, Options(tmp_path / "fm", progress=False)
    )
    with pytest.raises(ConfigError, match="--debias knows no inverse"):
        go(tmp_path / "fm", tmp_path / "S", settings)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num": 0}, "num"),
        ({"solver": "dopri"}, "solver"),
        ({"solver": "sde", "steps": 1}, "at least 2"),
    ],
)
def test_wrong_settings_are_refused(change, words):
    with pytest.raises(ConfigError, match=words):
        Settings(**({"num": 4} | change))


def test_a_damaged_settings_file_is_named(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "S").mkdir()
    (tmp_path / "S" / "settings.json").write_text("{")
    with pytest.raises(DataError, match=r"settings\.json"):
        go(tmp_path / "run", tmp_path / "S")
    assert json.loads((run / "config.json").read_text())
