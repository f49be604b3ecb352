"""The command line: what each command leaves, and one line with an exit code for whatever is wrong."""

import json
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
import torch

from cfm_lite import cli, runs, viz
from cfm_lite.cli.arguments import Common
from cfm_lite.cli.samples import picture
from cfm_lite.data import digits
from cfm_lite.errors import ConfigError
from cfm_lite.evaluate import judges
from cfm_lite.evaluate.samples import save_samples
from cfm_lite.lab import SUITES
from cfm_lite.methods import METHODS
from cfm_lite.runs.imagenet import PRESETS
from cfm_lite.runs.recipe import recipe


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch, request):
    """Judges are kept in one folder of this test session."""
    folder = tmp_path_factory.getbasetemp() / "judges-of-cli"
    monkeypatch.setattr(judges, "cache_root", lambda: folder)


def test_train_sample_and_evaluate_follow_each_other(tmp_path, capsys):
    run = tmp_path / "run"
    assert (
        cli.main(
            [
                "train",
                "digits",
                "--method",
                "vecor_latent",
                "--steps",
                "5",
                "--out",
                str(run),
                "--set",
                "hidden_size=16",
            ]
        )
        == 0
    )
    assert (run / "samples.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((run / "config.json").read_text())["recipe"]["hidden_size"] == 16
    assert (
        cli.main(
            [
                "sample",
                "--checkpoint",
                str(run),
                "--num",
                "30",
                "--steps",
                "3",
                "--guidance",
                "1.5",
                "--solver",
                "heun",
            ]
        )
        == 0
    )
    assert cli.main(["evaluate", "--samples", str(run / "samples.npz")]) == 0
    rows = json.loads((run / "metrics.json").read_text())
    assert {row["metric"] for row in rows} >= {
        "accuracy",
        "frechet",
        "frechet_real",
        "nearest_ratio",
        "precision",
        "recall",
    }
    assert {(row["method"], row["nfe"], row["sampler"], row["guidance"]) for row in rows} == {
        ("vecor_latent", 6, "heun", 1.5)
    }
    assert "accuracy" in capsys.readouterr().out


def test_resuming_goes_on_from_the_folder(tmp_path, capsys):
    run = str(tmp_path / "run")
    common = ["train", "toy", "--out", run, "--set", "hidden_size=16", "batch=32", "cooldown=0"]
    assert cli.main([*common, "--steps", "4"]) == 0
    assert cli.main([*common, "--steps", "6"]) == 2  # a run is there
    assert "already holds a run" in capsys.readouterr().err
    assert cli.main([*common, "--steps", "6", "--resume"]) == 0
    assert "6 steps" in capsys.readouterr().out


def test_compare_reports_differences(few_evaluations, tmp_path, capsys):
    words = ["--quick", "--seeds", "2", "--arms", "fm", "fm_scaled", "delta_fm", "pair_dispersive"]
    assert cli.main(["compare", "toy", *words, "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "difference to fm" in out
    assert "n = 2" in out
    assert cli.main(["compare", "toy", "--report", "--out", str(tmp_path)]) == 0
    assert "difference to fm" in capsys.readouterr().out


def test_demo_leaves_what_it_promises(tmp_path, capsys):
    assert cli.main(["demo", "--quick", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    for name in ("samples.png", "fields.png", "quality_vs_steps.png", "pictures.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        assert str(tmp_path / name) in out
    rows = json.loads((tmp_path / "metrics.json").read_text())
    assert {row["nfe"] for row in rows} == {2, 4, 8, 16, 50}
    assert {row["method"] for row in rows} == {
        "fm",
        "fm_scaled",
        "fm_retargeted",
        "delta_fm",
        "vecor_latent",
        "dispersive",
    }
    assert all(
        set(row) >= {"method", "dataset", "seed", "steps", "nfe", "sampler", "metric", "value"}
        for row in rows
    )
    assert "quick: the numbers mean nothing" in out


def test_prepare_of_the_digits_needs_nothing(capsys):
    assert cli.main(["prepare", "digits"]) == 0
    assert "1797" in capsys.readouterr().out


@pytest.mark.real_data
def test_prepare_of_mnist_verifies_what_is_there(capsys):
    assert cli.main(["prepare", "mnist"]) == 0
    assert "60000 + 10000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["train", "digits", "--method", "deltafm"], 2, "Did you mean 'delta_fm'"),
        (["train", "digits", "--set", "lr"], 2, "no '='"),
        (
            ["train", "digits", "--set", "lr=fast"],
            2,
            "lr='fast': lr must be of type float, such as lr=",
        ),
        (["train", "digits", "--set", "learning_rate=1"], 2, "it must be one of"),
        (["train", "digits", "--set", "lr=1", "lr=2"], 2, "twice"),
        (["train", "digits", "--set", "lr=nan"], 2, "lr"),
        (["train", "digits", "--set", "weight=1.0", "--method", "delta_fm"], 2, "below 1"),
        (["train", "digits", "--steps", "0"], 2, "steps"),
        (["sample", "--checkpoint", "nowhere"], 4, "nowhere is not a run"),
        (["evaluate", "--samples", "nowhere.npz"], 3, "missing"),
        (["compare", "toy", "--report", "--out", "nowhere"], 3, "missing"),
        (["sample", "--checkpoint", "nowhere", "--num", "0"], 2, "num"),
    ],
)
def test_each_wrong_input_is_one_line_and_an_exit_code(
    argv, code, words, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(argv) == code
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["trian"],
        ["train", "digit"],
        ["demo", "--seed", "x"],
        ["demo", "--speed", "9"],
        ["--version"],
    ],
)
def test_what_cannot_be_parsed_exits_with_two(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    assert stop.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "line", ["train toy --out", "train toy --out=", "evaluate --samples", "compare toy --out"]
)
def test_an_empty_path_is_not_the_current_folder(line, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = line.split()
    with pytest.raises(SystemExit) as stop:
        cli.main(words if words[-1].endswith("=") else [*words, ""])
    assert stop.value.code == 2
    assert "is empty, as an unset variable is. Give a path" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("data", "least"), [("two_classes", 2), ("digits", 4)])
def test_too_few_samples_are_told_with_the_number_that_suffices(data, least, tmp_path, capsys):
    """Not with the names and shapes of tensors inside."""
    settings = {"recipe": recipe("toy", dataset=data).as_dict(), "step": 1}
    shape = (2,) if data == "two_classes" else (1, 8, 8)
    x, y = torch.rand(least, *shape), torch.zeros(least, dtype=torch.long)
    file = tmp_path / "few.npz"
    save_samples(file, x[1:], y[1:], settings)
    assert cli.main(["evaluate", "--samples", str(file)]) == 3
    assert f"{file} holds {least - 1} samples of {data}; at least {least} are needed. Draw " in (
        capsys.readouterr().err
    )
    assert [path.name for path in tmp_path.iterdir()] == ["few.npz"]
    save_samples(file, x, y, settings)
    assert cli.main(["evaluate", "--samples", str(file)]) == 0


@pytest.mark.parametrize(
    ("line", "option"),
    [
        ("train toy --steps 2 --set hidden_size=16 --set batch=64", "--set"),
        ("train toy --set=hidden_size=16 --set batch=64", "--set"),
        ("train toy --steps 2 --steps 3", "--steps"),
        ("train toy --save-every 2 --save_every 3", "--save-every"),
        ("train toy --resume auto --no-resume", "--resume"),
        ("sample --prompt 'a red seven' --prompt 'a pink two' --out p.png", "--prompt"),
        ("compare toy --group core --group weight --list", "--group"),
        ("compare toy --arms fm --arms vecor --list", "--arms"),
        ("scale train --dry-run --set depth=1 --set batch=8", "--set"),
    ],
)
def test_an_option_that_is_given_twice_loses_nothing_silently(
    line, option, tmp_path, capsys, monkeypatch
):
    """Of `--set hidden_size=16 --set batch=64` only the batch would be set."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main(shlex.split(line))
    assert stop.value.code == 2
    assert f"error: {option} is given twice, and only the last" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("train toy", "cfm-lite: stopped. The same command with --resume resumes it."),
        ("scale train imagenet", "cfm-lite: stopped. The same command with --resume resumes it."),
        ("compare toy", "cfm-lite: stopped. The same command resumes it."),
        ("scale prepare", "cfm-lite: stopped. The same command resumes it."),
        ("scale sample", "cfm-lite: stopped. The same command resumes it."),
        ("evaluate", "cfm-lite: stopped."),
    ],
)
def test_who_stops_a_command_hears_how_it_is_resumed(command, said, capsys, monkeypatch):
    def stop(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Common, "run", stop)
    assert cli.main(command.split()) == 130
    assert capsys.readouterr().err.strip() == said


def test_missing_mnist_is_one_error_that_names_path_variable_and_command(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("CFM_LITE_DATA", str(tmp_path / "none"))
    assert cli.main(["train", "mnist", "--out", str(tmp_path / "run")]) == 3
    err = capsys.readouterr().err
    for words in (str(tmp_path / "none"), "CFM_LITE_DATA", "cfm-lite prepare mnist"):
        assert words in err


def test_debug_shows_where(tmp_path):
    with pytest.raises(ConfigError):
        cli.main(["train", "digits", "--method", "none", "--debug"])


def test_a_damaged_sample_file_is_refused(tmp_path, capsys):
    bad = tmp_path / "samples.npz"
    bad.write_bytes(b"PK\x03\x04 half")
    assert cli.main(["evaluate", "--samples", str(bad)]) == 3
    assert "Draw them again" in capsys.readouterr().err


def test_help_lists_the_commands_and_the_module_can_be_run():
    done = subprocess.run(
        [sys.executable, "-m", "cfm_lite.cli", "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    for name in ("demo", "train", "sample", "evaluate", "compare", "prepare"):
        assert name in done.stdout


@pytest.mark.parametrize(
    ("command", "names"),
    [(["train"], METHODS), (["scale", "train"], PRESETS), (["compare"], SUITES)],
)
def test_help_names_every_method_and_suite(command, names, capsys):
    with pytest.raises(SystemExit):
        cli.main([*command, "--help"])
    told = re.sub(r"[\s│]+", " ", capsys.readouterr().out)
    assert f"(one of {', '.join(names)}; default: " in told


@pytest.mark.parametrize(
    "command",
    ["train", "sample", "evaluate", "compare", "scale prepare", "scale train", "scale sample"],
)
def test_help_says_a_default_once_and_in_words(command, capsys):
    with pytest.raises(SystemExit):
        cli.main([*command.split(), "--help"])
    told = capsys.readouterr().out
    assert not re.search(r"default: (None)?\)|\{None", told)


def test_the_help_of_out_says_where_samples_go(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        cli.main(["sample", "--help"])
    told = re.sub(r"[│\s]+", " ", capsys.readouterr().out)
    assert "in the run's folder; of the network that ships, in the current one" in told
    assert "For captions of pixels also FILE.png: only the picture" in told
    monkeypatch.chdir(tmp_path)
    assert cli.main(["sample", "--prompt", "a red seven", "--num", "1", "--steps", "1"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"samples.npz", "samples.png"}


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("train digit", "See cfm-lite train --help."),
        ("scale train --stepz 3", "See cfm-lite scale train --help."),
        ("train digits --weight 0.3", "Fields of a recipe are set with --set NAME=VALUE."),
        ("compare digit", "See cfm-lite compare --help."),
        ("trian", "See cfm-lite --help."),
    ],
)
def test_a_wrong_word_says_where_the_help_is(line, hint, capsys):
    with pytest.raises(SystemExit):
        cli.main(line.split())
    said = capsys.readouterr().err
    assert hint in said
    assert "None" not in said


# samples are filed under the run's own name


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"method": "contrastive"}, "contrastive"),
        ({"method": "vecor_latent", "also": "repa"}, "vecor_latent+repa"),
        ({"method": "vecor_image"}, "vecor_image"),
        ({"method": "fm"}, "fm"),
    ],
)
def test_evaluate_files_samples_under_the_run_s_own_name_with_their_card(
    fields, name, tmp_path, capsys
):
    chosen = recipe("digits", hidden_size=8, depth=1, steps=2, align_block=1, **fields)
    x, y = digits.load("judge")
    settings = {"recipe": chosen.as_dict(), "step": 1, "solver": "heun", "interval": [0.1, 0.5]}
    np.savez(
        tmp_path / "samples.npz",
        x=x[:40].numpy(),
        y=y[:40].numpy(),
        settings=np.array(json.dumps(settings)),
    )
    assert cli.main(["evaluate", "--samples", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    for row in json.loads((tmp_path / "metrics.json").read_text()):
        assert (row["method"], row.get("also", ""), row["steps"], row["sampler"]) == (
            name,
            fields.get("also", ""),
            1,
            "heun",
        )
        assert row["features"] == "judge of digits"
        assert row["reference_images"] == len(x)
        assert row["nfe"] == 2 * chosen.sample_steps
    assert f"40 samples of {name}" in told
    assert f"held-out rows of digits ({row['reference_hash'][:12]}): 898 of 898" in told


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "folder without a samples.npz"),
        ({"arr_0": np.zeros((5, 8, 8, 3), np.uint8)}, "--reference"),
    ],
)
def test_images_without_a_reference_are_refused_with_the_remedy(content, words, tmp_path, capsys):
    if content:
        np.savez(tmp_path / "samples.npz", **content)
    assert cli.main(["evaluate", "--samples", str(tmp_path)]) == 3
    assert words in capsys.readouterr().err
    assert not (tmp_path / "metrics.json").exists()


@pytest.mark.parametrize(
    ("y", "over"), [([0, 1, 2, 0, 1, 2], None), ([2, 0, 0, 1, 1, 2], [2, 0, 0, 1, 1, 2])]
)
def test_the_picture_of_samples_names_a_column_only_where_it_holds_one_class(
    y, over, tmp_path, monkeypatch
):
    said = []
    for name in ("image_grid", "captioned"):
        plain = getattr(viz, name)
        monkeypatch.setattr(
            viz,
            name,
            lambda x, told, plain=plain, **how: said.append(told) or plain(x, told, **how),
        )
    run = runs.Run(recipe("digits"), torch.nn.Linear(1, 1), spec=runs.Spec((1, 8, 8), 3))
    picture(run, torch.zeros(6, 1, 8, 8), torch.tensor(y), tmp_path / "a.png")
    assert said == [list(map(str, over)) if over else y[:3]]
