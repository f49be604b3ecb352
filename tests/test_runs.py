"""What a run leaves behind, and how it goes on."""

import json
import os
import re
import shutil
import signal
import sys

import numpy as np
import pytest
import torch

from cfm_lite import cli, runs
from cfm_lite._internal.checks import parse_json
from cfm_lite.data.datasets import dataset
from cfm_lite.data.root import checkout
from cfm_lite.engine import checkpoint, compiled
from cfm_lite.errors import CheckpointError, ConfigError, DivergenceError
from cfm_lite.runs import loop
from cfm_lite.runs import run as opened_runs
from cfm_lite.runs.imagenet import imagenet
from cfm_lite.runs.recipe import Recipe, build_model, build_trainer
from tests.logs import lines, numbers
from tests.networks import same_parameters

SMALL = Recipe(hidden_size=16, depth=2, steps=12, batch=32)
DATA = dataset("digits")


def go(recipe, folder, **settings):
    return runs.train(
        recipe, DATA, out=folder, progress=False, log_every=2, save_every=5, **settings
    )


def test_a_short_run_says_what_its_average_still_holds_of_the_start():
    papers = {"ema": 0.9999, "ema_warmup": False}
    assert "--set ema_warmup=true" in runs.Run(imagenet("sit", **papers), None, step=1000).summary
    # a recipe that warms up has no such field to set
    assert runs.Run(Recipe(), None, step=2).summary.endswith(
        "the network at the start: train longer)"
    )
    assert (
        "90% of the average is still the network at the start"
        in runs.Run(imagenet("sit", **papers), None, step=1000).summary
    )
    assert "start" not in runs.Run(imagenet("sit", **papers), None, step=400_000).summary
    assert (
        "start"
        not in runs.Run(imagenet("sit", **papers | {"ema_warmup": True}), None, step=1000).summary
    )
    assert (
        "start" not in runs.Run(Recipe(ema=0.999), None, step=50).summary
    )  # the small recipes warm up


def test_a_run_that_ends_in_its_warm_up_says_so():
    assert "still rising, over 200 steps" in runs.Run(Recipe(warmup=200), None, step=100).summary
    assert "or --set warmup=10)" in runs.Run(Recipe(warmup=200), None, step=100).summary
    assert "rising" not in runs.Run(Recipe(warmup=200), None, step=200).summary


def interrupt(monkeypatch, at, number):
    """Let the process send itself signal `number` at step `at`; returns what undoes it."""
    steps = loop._steps

    def interrupted(*args):
        for step in steps(*args):
            if step == at:
                os.kill(os.getpid(), number)
            yield step

    monkeypatch.setattr(loop, "_steps", interrupted)
    return lambda: monkeypatch.setattr(loop, "_steps", steps)


def test_a_run_leaves_config_log_and_checkpoints(tmp_path):
    run = go(SMALL.changed(method="delta_fm", cooldown=1 / 3), tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["recipe"]["method"] == "delta_fm"
    assert set(config["facts"]) >= {"cfm_lite", "torch", "python", "device", "commit", "cores"}
    commit = config["facts"]["commit"]
    assert (
        re.fullmatch("[0-9a-f]{40}", commit) if (checkout() / ".git").exists() else commit is None
    )
    log = lines(tmp_path / "run")
    assert [line["step"] for line in log] == [2, 4, 6, 8, 10, 12]
    said = {"step", "loss", "flow_matching", "repulsion", "grad_norm", "lr"}
    assert set(log[0]) == said | {
        "images_per_second",
        "seconds",
        "memory",
    }  # no mfu: nobody says what this processor can do
    assert set(numbers(tmp_path / "run")[0]) == said
    assert [line["lr"] for line in log] == pytest.approx(
        [2e-3] * 4 + [2e-3 * 3 / 4, 2e-3 / 4]
    )  # of the steps themselves
    assert all(line["memory"] > 2**24 and line["images_per_second"] > 0 for line in log)
    assert [line["seconds"] for line in log] == sorted(line["seconds"] for line in log)
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step-00000005", "step-00000010", "step-00000012"]
    assert run.log == log


def test_a_stopped_run_goes_on_to_the_same_end(tmp_path, monkeypatch):
    whole = go(SMALL, tmp_path / "whole")
    stopped = tmp_path / "stopped"
    undo = interrupt(monkeypatch, 7, signal.SIGTERM)
    with pytest.raises(SystemExit) as stop:
        go(SMALL, stopped)
    assert stop.value.code == 143
    assert (stopped / "checkpoints" / "step-00000007").is_dir()
    undo()
    before_stop = lines(stopped)[-1]["seconds"]
    with (stopped / "log.jsonl").open("a") as file:
        file.write('{"step": 9, "loss": 1.0}\n{"step": 1')  # what a crash later on would have left
    resumed = go(SMALL, stopped, resume=True)
    assert same_parameters(whole.model, resumed.model)
    assert numbers(tmp_path / "whole") == numbers(stopped)
    seconds = [line["seconds"] for line in lines(stopped)]
    assert seconds == sorted(seconds)  # the second sitting goes on from the first one's end
    assert seconds[3] > before_stop


def test_ctrl_c_saves_and_says_so(tmp_path, monkeypatch):
    interrupt(monkeypatch, 3, signal.SIGINT)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        go(SMALL, tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / "step-00000003").is_dir()
    assert signal.getsignal(signal.SIGINT) == before


def test_a_run_stays_in_its_folder_where_the_current_one_changes(tmp_path, monkeypatch):
    """A notebook may change it between two steps; checkpoints went to the new place."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    go(SMALL, "run", listen=lambda line: os.chdir(tmp_path / "elsewhere"))
    assert not list((tmp_path / "elsewhere").iterdir())
    assert runs.Run.open(tmp_path / "run").step == SMALL.steps
    monkeypatch.chdir(tmp_path)
    go(SMALL.changed(steps=14), "run", resume=True)
    assert runs.Run.open("run").step == 14


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32])
def test_own_data_of_every_float_type_leave_a_run(kind, tmp_path):
    own = DATA._replace(x1=DATA.x1[:64].to(kind), y=DATA.y[:64], held_x1=DATA.held_x1.to(kind))
    run = runs.train(SMALL.changed(steps=2), own, out=tmp_path / "run", progress=False)
    assert run.step == 2
    assert own.about["fingerprint"] != own._replace(x1=-own.x1).about["fingerprint"]


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path):
    go(SMALL, tmp_path)
    with pytest.raises(ConfigError, match="already holds a run"):
        go(SMALL, tmp_path)


def test_a_finished_run_resumes_to_itself(tmp_path):
    first = go(SMALL, tmp_path)
    again = go(SMALL, tmp_path, resume=True)
    assert same_parameters(first.model, again.model)
    assert again.step == 12


def test_the_averaged_model_is_what_is_loaded(tmp_path):
    run = go(SMALL, tmp_path)
    opened = runs.Run.open(tmp_path)
    assert opened.recipe == SMALL
    assert opened.step == 12
    assert same_parameters(run.model, opened.model)
    assert runs.saved_recipe(tmp_path) == SMALL
    assert runs.Run.open(tmp_path / "checkpoints" / "step-00000005").step == 5


def test_no_run_is_a_clear_error(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        runs.saved_recipe(tmp_path)
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        runs.Run.open(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        runs.saved_recipe(tmp_path)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A run beside links to it, its checkpoints on another disk, and a copy of one without its run."""
    home = tmp_path_factory.mktemp("located")
    go(SMALL, home / "run")
    (home / "link").symlink_to("run")
    (home / "newest").symlink_to("run/checkpoints/step-00000005")
    shutil.copytree(home / "run", home / "split")
    (home / "split" / "checkpoints").rename(home / "disk")
    (home / "split" / "checkpoints").symlink_to(home / "disk")
    return home


@pytest.mark.parametrize(
    ("cwd", "path", "step"),
    [
        ("", "run", 12),
        ("", "run/", 12),
        ("", "./run/../run/.", 12),
        ("run", ".", 12),
        ("run", "checkpoints", 12),
        ("run", "checkpoints/step-00000005/", 5),
        ("run/checkpoints", ".", 12),
        ("run/checkpoints", "..", 12),
        ("run/checkpoints", "step-00000005", 5),
        ("run/checkpoints/step-00000005", ".", 5),
        ("run/checkpoints/step-00000005", "..", 12),
        ("run/checkpoints/step-00000005", "../..", 12),
        ("run/checkpoints/step-00000005", "weights.safetensors", 5),
        ("", "run/config.json", 12),
        ("", "run/log.jsonl", 12),
        ("", "run/checkpoints/step-00000010/MANIFEST.json", 10),
        ("", "link", 12),
        ("", "link/checkpoints/step-00000010", 10),
        ("", "newest", 5),
        ("", "split", 12),
        ("", "split/checkpoints/step-00000010", 10),
        ("split/checkpoints", "step-00000010", 10),
        ("run", "~/run", 12),
        ("run", "~/run/checkpoints/step-00000005", 5),
    ],
)
def test_a_run_is_found_from_wherever_one_stands(found, monkeypatch, cwd, path, step):
    monkeypatch.chdir(found / cwd)
    if cwd == "split/checkpoints":
        monkeypatch.setenv("PWD", str(found / cwd))
    monkeypatch.setenv("HOME", str(found))
    if (
        cwd != "split/checkpoints"
    ):  # who has followed the link stands on the other disk, where there is no run
        assert runs.saved_recipe(path) == SMALL
    assert runs.Run.open(path).step == step


@pytest.mark.parametrize(
    "path",
    [
        "",
        "run/samples",
        "run/mine.safetensors",
        "run/checkpoints/mine",
        "nowhere",
        "~nobody-is-called-so/run",
    ],
)
def test_what_is_no_run_is_not_taken_for_one(found, monkeypatch, path):
    monkeypatch.chdir(found)
    (found / "run" / "samples").mkdir(exist_ok=True)
    (found / "run" / "mine.safetensors").touch()
    with pytest.raises((CheckpointError, ConfigError)):
        runs.saved_recipe(path)
    with pytest.raises((CheckpointError, ConfigError)):
        runs.Run.open(path)


def test_weights_that_do_not_fit_are_counted_in_one_line(tmp_path, monkeypatch):
    go(SMALL, tmp_path)
    wide = build_model(SMALL.changed(hidden_size=8, depth=3), DATA)
    monkeypatch.setattr(opened_runs, "build_model", lambda recipe, data: wide)
    with pytest.raises(
        CheckpointError,
        match=r"does not fit this MLP: \d+ missing: \S+, .* and \d+ more; \d+ of another shape: ",
    ) as error:
        runs.Run.open(tmp_path)
    assert len(str(error.value)) < 600
    assert "\n" not in str(error.value)


def test_divergence_names_the_last_checkpoint_and_keeps_it(tmp_path):
    with pytest.raises(DivergenceError, match="step-00000005") as error:
        runs.train(SMALL, _poisoned(DATA, 6), out=tmp_path, progress=False, save_every=5)
    assert error.value.exit_code == 5
    assert runs.Run.open(tmp_path).step == 5


def _poisoned(data, step):
    """The data set with values that overflow the loss in the batch of `step`, but are finite
    themselves.
    """
    from itertools import islice

    from cfm_lite.data.batches import batches

    rows = torch.arange(len(data.x1))[:, None].float()
    first = [set(batch[:, 0].long().tolist()) for batch, _ in islice(batches(rows, size=32), step)]
    new = sorted(first[-1] - set().union(*first[:-1]))
    x1 = data.x1.clone()
    x1[new] = 1e30
    return data._replace(x1=x1)


def test_numbers_that_are_not_finite_become_null_in_json(tmp_path):
    path = runs.write_json(
        tmp_path / "a.json", {"a": float("nan"), "b": [float("inf"), 1.0], "c": torch.tensor([1.5])}
    )
    assert json.loads(path.read_text()) == {"a": None, "b": [None, 1.0], "c": [1.5]}


@pytest.mark.skipif(sys.platform != "linux", reason="not run: other systems refuse such names")
def test_a_name_that_is_not_utf_8_is_kept_in_json_and_found_again(tmp_path):
    """Rows, settings and configs name files; they were lost after all work was done."""
    name = os.fsdecode(b"caf\xe9-\xc3\xbc.npz")
    path = runs.write_json(tmp_path / "row.json", {"file": name, "other": "ü"})
    assert '"ü"' in path.read_text(encoding="utf-8")
    assert parse_json(path.read_bytes()) == {"file": name, "other": "ü"}


def test_to_compile_is_the_affair_of_the_trainer_and_a_compiled_run_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    short = SMALL.changed(steps=1)
    made = build_trainer(short, build_model(short, DATA), compile=False)
    with pytest.raises(ConfigError, match="leave compile out"):
        runs.train(short, DATA, trainer=made, compile=False, progress=False)
    for name, chosen in (("plain", None), ("compiled", True)):
        runs.train(short, DATA, out=tmp_path / name, compile=chosen, progress=False)
    told = [json.loads((tmp_path / n / "config.json").read_text()) for n in ("plain", "compiled")]
    assert [config.get("how") for config in told] == [None, {"compile": True}]


def test_a_device_that_is_not_there_is_refused():
    assert runs.pick_device("auto").type in ("cpu", "cuda")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="use --device cpu"):
            runs.pick_device("cuda")
    with pytest.raises(ConfigError, match="Did you mean 'cuda'"):
        runs.pick_device("cuad")


class TestSamplesOnTheWay:
    """Pictures of the average while a run goes on."""

    words = ("--set", "hidden_size=16", "depth=2", "batch=32", "sample_steps=2", "ema2=0.2")

    def train(self, out, *more):
        assert (
            cli.main(
                [
                    "train",
                    "digits",
                    "--out",
                    str(out),
                    "--steps",
                    "6",
                    "--save-every",
                    "4",
                    *more,
                    *self.words,
                ]
            )
            == 0
        )

    def test_they_change_no_bit_of_the_run_and_come_again_after_a_stop(self, tmp_path, monkeypatch):
        self.train(tmp_path / "plain")
        self.train(tmp_path / "seen", "--sample-every", "2")
        plain, seen = (
            checkpoint.load(checkpoint.latest(tmp_path / name / "checkpoints")).weights
            for name in ("plain", "seen")
        )
        assert all(torch.equal(plain[name], seen[name]) for name in plain)
        pictures = {
            path.name: path.read_bytes() for path in (tmp_path / "seen").glob("samples-step-*.png")
        }
        assert sorted(pictures) == [f"samples-step-{step:08d}.png" for step in (2, 4, 6)]
        assert len(set(pictures.values())) == 3
        assert not list((tmp_path / "plain").glob("samples-step-*"))

        undo = interrupt(monkeypatch, 3, signal.SIGTERM)
        with pytest.raises(SystemExit):
            self.train(tmp_path / "stopped", "--sample-every", "2")
        undo()
        self.train(tmp_path / "stopped", "--sample-every", "2", "--resume")
        assert {
            path.name: path.read_bytes()
            for path in (tmp_path / "stopped").glob("samples-step-*.png")
        } == pictures

    @pytest.mark.parametrize(
        ("error", "told"),
        [
            (DivergenceError("the samples are not finite"), "the samples are not finite"),
            (OSError(28, "No space left"), r"OSError\(28, 'No space left'\)"),
            (KeyError("palette"), r"KeyError\('palette'\)"),
        ],
    )
    def test_a_picture_that_fails_is_a_note_and_the_average_stays_in_the_mode_it_had(
        self, tmp_path, error, told
    ):
        def draw(model, step):
            assert not model.training
            raise error

        with pytest.warns(UserWarning, match=f"no samples at step 12: {told}"):
            run = go(SMALL, tmp_path, sample_every=12, draw=draw)
        assert run.step == 12
        assert run.model.training

    def test_a_picture_that_would_never_come_is_refused(self, tmp_path, capsys):
        words = [
            "train",
            "digits",
            "--out",
            str(tmp_path / "run"),
            "--steps",
            "6",
            "--sample-every",
            "7",
        ]
        assert cli.main(words) == 2
        assert "sample_every is 7 and there are 6 steps" in capsys.readouterr().err
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("given", "words"),
        [({"sample_every": 3}, "no draw: nothing"), ({"resume": True}, "no out: there is no run")],
    )
    def test_what_cannot_act_is_refused(self, given, words):
        with pytest.raises(ConfigError, match=words):
            go(SMALL, None, **given)

    def test_each_average_is_sampled_by_name(self, tmp_path, capsys):
        self.train(tmp_path / "run")
        saved = checkpoint.load(checkpoint.latest(tmp_path / "run" / "checkpoints")).weights
        drawn = {}
        for name in ("ema", "ema2", "model"):
            model = runs.Run.open(tmp_path / "run", average=name).model
            prefix = opened_runs.AVERAGES[name]
            assert all(
                torch.equal(value, saved[prefix + key]) for key, value in model.state_dict().items()
            )
            out = tmp_path / f"{name}.npz"
            assert (
                cli.main(
                    [
                        "sample",
                        "--checkpoint",
                        str(tmp_path / "run"),
                        "--out",
                        str(out),
                        "--num",
                        "10",
                        "--average",
                        name,
                    ]
                )
                == 0
            )
            with np.load(out, allow_pickle=False) as file:
                drawn[name] = file["x"].tobytes()
                assert json.loads(str(file["settings"]))["average"] == name
        assert len(set(drawn.values())) == 3
        go(SMALL, tmp_path / "one")
        capsys.readouterr()
        assert cli.main(["sample", "--checkpoint", str(tmp_path / "one"), "--average", "ema2"]) == 4
        assert "keeps no second average; use --average ema or model" in capsys.readouterr().err
