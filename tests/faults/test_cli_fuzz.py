"""Thousands of command lines, run in this process: exit code 0 or a documented one, one line of
error, never a traceback.

What would take long (training, drawing, measuring, fetching) is replaced by `Reached`, which ends a
command well once all its arguments have been accepted; everything before it is the real code.
"""

import dataclasses
import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from cfm_lite import cli, runs
from cfm_lite._internal import checks, terminal
from cfm_lite.data import datasets
from cfm_lite.errors import CFMError, CheckpointError, ConfigError
from cfm_lite.runs.recipe import recipe
from tests.faults import counts

CODES = {0, 1, 2, 3, 4}
KINDS = {
    "demo": cli.Demo,
    "train": cli.Train,
    "sample": cli.Sample,
    "evaluate": cli.Evaluate,
    "compare": cli.Compare,
    "prepare": cli.Prepare,
    "export": cli.Export,
    "scale prepare": cli.ScalePrepare,
    "scale train": cli.ScaleTrain,
    "scale sample": cli.ScaleSample,
}


def flags(kind):
    """--name of every field of a command."""
    names = [
        f.name for f in dataclasses.fields(kind) if f.name not in ("recipe", "suite", "dataset")
    ]
    return [f"--{name.replace('_', '-')}" for name in names]


COMMANDS = {name: flags(kind) for name, kind in KINDS.items()}
SWITCHES = {
    "--quick",
    "--resume",
    "--dry-run",
    "--compile",
    "--no-compile",
    "--debias",
    "--report",
    "--checkpointing",
}
FIRST = {
    "train": ["toy", "digits", "digits_sit", "mnist", "cifar10", "imagenet", "digit", ""],
    "compare": ["toy", "digits", "mnist", "imagenet"],
    "prepare": ["digits", "mnist", "cifar10", "cifar10-jpeg75", "imagenet", "cifar"],
}
NUMBERS = [
    "0",
    "1",
    "2",
    "-1",
    "3.5",
    "1e400",
    "-1e400",
    "nan",
    "inf",
    "1e-3",
    "0x10",
    "1_000",
    "9" * 30,
    "9" * 400,
    "٣",
    " 1",
    "1 ",
]
WORDS = [
    "",
    " ",
    "x",
    "ü",
    "日本",
    "\udcff",
    "a" * 300,
    "../../x",
    "/dev/null",
    "/proc/x",
    ".",
    "file",
    "run",
    "none",
    "None",
    "true",
    "True",
    "--",
    "-",
    "-x",
    "--help",
    "--nonsense",
    "--step",
    "fm",
    "delta_fm",
    "vecor",
    "dispersive",
    "repa",
    "sit",
    "deltafm",
    "euler",
    "rk5",
    "cpu",
    "cuda",
    "mps",
    "auto",
    "SiT-Ti/2",
    "SiT-XL/2",
    "json",
    "tensorboard",
    "random",
    "standin",
    "tiny",
    "\n",
    "\t",
    "=",
    "{}",
    "[1]",
    "'",
    '"',
    "$HOME",
    "*",
]
SETTINGS = [
    "lr=1e-3",
    "lr=nan",
    "lr=-1",
    "lr=",
    "lr",
    "=1",
    "lr=1=2",
    "weight=1",
    "weight=0.5",
    "k=2",
    "k=0",
    "weight=1e400",
    "seed=-1",
    "seed=x",
    "seed=2",
    "batch=7",
    "batch=0",
    "steps=3",
    "steps=1e3",
    "clip=-1",
    "ema=1",
    "tau=0",
    "precision=fp8",
    "precision=bf16",
    "model=sit",
    "solver=rk5",
    "guidance=inf",
    "perturb=cutmix",
    "perturb=none",
    "variant=hinge",
    "path=vp",
    "coupling=minibatch_ot",
    "time=lognormal",
    "method=vecor",
    "dataset=mnist",
    "dataset=imagenet",
    "learning_rate=1",
    "ü=1",
    "lr=ü",
    "shard=32",
    "accumulate=3",
    "label_dropout=2",
    "views=restricted",
    "hidden_size=1",
    "depth=0",
    "num_heads=5",
    "mirror=maybe",
    "mirror=true",
    "size=100",
    "align=-1",
]


class Reached(CFMError):
    """Every argument was accepted."""

    exit_code = 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a real run of two steps, a file, and nothing else."""
    folder = tmp_path_factory.mktemp("cli")
    small = recipe("toy", steps=2, batch=32, shard=32, hidden_size=8)
    runs.train(
        small, datasets.dataset("two_classes", points=50), out=folder / "run", progress=False
    )
    (folder / "file").write_text("not a folder")
    return folder


@pytest.fixture
def stubs(trained, monkeypatch):
    def reached(*args, **kwargs):
        raise Reached("all arguments were accepted")

    monkeypatch.chdir(trained)
    monkeypatch.setenv("CFM_LITE_DATA", str(trained / "none"))
    monkeypatch.setenv("COLUMNS", "80")
    from cfm_lite import demo
    from cfm_lite import lab as experiments
    from cfm_lite.cli import samples
    from cfm_lite.data import cifar10, mnist
    from cfm_lite.evaluate import samples as numbers
    from cfm_lite.lab import sweep
    from cfm_lite.scale import commands as scale

    names = {
        demo: ["_work", "_run"], runs: ["train"], experiments: ["draw_samples", "judge_of"], samples: ["draw_run"],
        mnist: ["download"],
        sweep: ["judge_of", "_outcomes"], numbers: ["judge_of", "evaluate_samples", "open_extractor"],
        cifar10: ["download"], scale: ["train_imagenet", "try_out", "sample_imagenet", "prepare", "open_codec",
        "opened_teacher", "encode_features"],
    }  # fmt: skip
    for module, stubbed in names.items():
        for name in stubbed:
            monkeypatch.setattr(module, name, reached)


def command_line(draw):
    """Words that look like a command: right more often than wrong, so that many get as far as the
    last check.
    """
    name = draw.choice([*COMMANDS, *COMMANDS, *COMMANDS, "trian", ""])
    words = name.split(" ") if draw.random() < 0.98 else []
    if name in FIRST and draw.random() < 0.8:
        words.append(draw.choice(FIRST[name]))
    for _ in range(draw.choice([0, 1, 1, 2, 3, 5])):
        flag = (
            draw.choice(COMMANDS.get(name) or ["--x"])
            if draw.random() < 0.93
            else draw.choice(["--nonsense", "--stepz", "-q", "--"])
        )
        values = SETTINGS if flag == "--set" and draw.random() < 0.9 else [*NUMBERS, *WORDS]
        many = (
            draw.choice([0, 1, 1, 1, 1, 2, 3])
            if flag in ("--set", "--arms", "--interval")
            else draw.choice([1, 1, 1, 1, 1, 1, 0, 2])
        )
        switch = flag in SWITCHES
        words += (
            [f"{flag}={draw.choice(values)}"]
            if draw.random() < 0.1
            else [flag, *(draw.choice(values) for _ in range(0 if switch else many))]
        )
    return [word for word in words if not word.startswith("--debug")]


def run(words, capsys):
    """(exit code, what was printed to stderr), with every surprise as an AssertionError that shows
    the words.
    """
    checks._warned.clear()
    terminal.Notes.shown.clear()
    try:
        code = cli.main(words)
    except SystemExit as stop:
        code = stop.code
    except BaseException as error:
        raise AssertionError(f"{words}: {type(error).__name__}: {error}") from error
    finally:
        said = capsys.readouterr()
    code = code or 0
    lines = [
        line for line in said.err.split("\n") if line and not line.startswith("cfm-lite: note: ")
    ]
    if code not in CODES or "Traceback" in said.err + said.out:
        raise AssertionError(f"{words}: exit code {code}: {said.err}")
    if (code or lines) and (len(lines) != 1 or not lines[0].startswith("cfm-lite: error: ")):
        raise AssertionError(f"{words}: exit code {code} with {len(lines)} lines: {said.err}")
    return code, lines[0] if lines else ""


def many(n, seed, capsys):
    draw, seen = random.Random(seed), Counter()
    random_state = torch.get_rng_state()
    for _ in range(n):
        code, said = run(command_line(draw), capsys)
        seen["accepted" if "were accepted" in said else f"exit {code}"] += 1
    assert torch.equal(random_state, torch.get_rng_state())
    return seen


def test_200_command_lines_end_well_or_with_one_line(stubs, capsys):
    seen = many(200, 0, capsys)
    assert seen["accepted"] > 10
    assert seen["exit 2"] > 80


@pytest.mark.faults
@pytest.mark.parametrize("part", range(10))
def test_1000_command_lines_ten_times_end_well_or_with_one_line(part, stubs, capsys):
    seen = many(1000, 100 + part, capsys)
    counts.write(f"command_lines_{part}", lines=sum(seen.values()), tracebacks=0, **seen)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "--stepz", "3"], "Did you mean --steps?"),
        (["train", "--steps", "many"], "--steps: 'many' is not of type INT"),
        (["train", "digit"], "invalid choice 'digit'"),
        (["demo", "--seed", "1e400"], "--seed"),
        ([], "Expected one of {demo, train, sample, evaluate,"),
        (["train", "--set", "lr=1", "lr=2"], "'lr' twice"),
        (["train", "--set", "learning_rat=1"], "recipe field is 'learning_rat'"),
        (["train", "--set", "stepz=1"], "Did you mean 'steps'?"),
        (["train", "--batch", "0"], "batch is 0"),
    ],
)
def test_a_wrong_word_is_named_with_what_would_be_right(words, said, stubs, capsys):
    code, line = run(words, capsys)
    assert code == 2
    assert said in line


@pytest.mark.parametrize("every", ["0", "-5"])
def test_a_zero_is_refused_and_not_taken_for_nothing(every, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, line = run(["train", "toy", "--steps", "2", "--save-every", every], capsys)
    assert code == 2
    assert f"save_every is {every}" in line


def test_no_memory_left_is_one_line(stubs, monkeypatch, capsys):
    for error in (
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("DefaultCPUAllocator: not enough memory"),
    ):
        monkeypatch.setattr(
            runs, "train", lambda *args, error=error, **kwargs: (_ for _ in ()).throw(error)
        )
        code, line = run(["train", "toy"], capsys)
        assert code == 1
        assert "not enough memory" in line
        assert "smaller batch" in line


def test_a_bug_still_shows_where_it_is(stubs, monkeypatch):
    monkeypatch.setattr(runs, "train", lambda *args, **kwargs: 1 + "x")
    with pytest.raises(TypeError):
        cli.main(["train", "toy"])


# ---- the settings that a run keeps in config.json


@pytest.fixture
def config(trained, tmp_path):
    """A function that writes a config.json and reads it as a recipe."""
    original = json.loads((trained / "run" / "config.json").read_text())

    def write(text=None, **changes):
        fields = {k: v for k, v in (original["recipe"] | changes).items() if v is not ...}
        (tmp_path / "config.json").write_text(
            text if text is not None else json.dumps(original | {"recipe": fields})
        )
        return runs.saved_recipe(tmp_path)

    return write


def test_a_saved_recipe_is_read_as_it_was(config):
    assert config() == recipe("toy", steps=2, batch=32, shard=32, hidden_size=8)
    assert config(lr=...) == recipe("toy", steps=2, batch=32, shard=32, hidden_size=8, lr=2e-3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stepps": 3}, "Did you mean 'steps'?"),
        ({"lr": "fast"}, "lr is 'fast'"),
        ({"lr": True}, "lr is True"),
        ({"lr": None}, "lr is None"),
        ({"steps": 1.5}, "steps is 1.5"),
        ({"steps": [3]}, r"steps is \[3\]"),
        ({"weight": 1.0}, "weight"),
        ({"method": "deltafm"}, "Did you mean 'delta_fm'?"),
        ({"method": {"name": "fm"}}, "method is"),
        ({"seed": "0"}, "seed"),
        ({"lr": float("nan")}, "lr is nan"),
    ],
)
def test_a_wrong_setting_in_config_json_is_named(config, changes, words):
    with pytest.raises(CheckpointError, match=words):
        config(**changes)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "cannot be read"),
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ("3", "cannot be read"),
        ('{"recipe": []}', "fields"),
        ('{"recipe": {"recipe": {"lr": 1}}}', "recipe field is 'recipe'"),
        ("{}", "'recipe'"),
        ('{"recipe": {"lr": 1e-3, "lr": 2e-3}}', "'lr' twice"),
        ('{"recipe": {}, "recipe": {"lr": 2e-3}}', "'recipe' twice"),
        ("\xff\xfe", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
    ],
)
def test_a_config_json_that_is_no_run_is_one_error(config, text, words):
    with pytest.raises((ConfigError, CheckpointError), match=words):
        config(text)


def test_a_config_json_that_is_a_folder_or_not_text_is_one_error(tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match="cannot be read"):
        runs.saved_recipe(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").mkdir()
    with pytest.raises(CheckpointError, match="cannot be read"):
        runs.saved_recipe(tmp_path)


# ---- the terminal


def shell(line, **env):
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"], capture_output=True, text=True, errors="replace", timeout=280,
        env={**os.environ, "CFM": f"{sys.executable} -m cfm_lite.cli", **env},
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    assert "Exception ignored" not in done.stderr, done.stderr
    return done


@pytest.mark.parametrize(
    ("line", "env", "code"),
    [
        ("$CFM --help | head -n 1", {}, 0),
        ("$CFM train nosuch >&-", {}, 2),
        ("$CFM --help | cat", {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}, 0),
    ],
)
def test_a_poor_terminal_gets_no_traceback(line, env, code):
    assert shell(line, **env).returncode == code


@pytest.mark.faults
@pytest.mark.parametrize(
    ("line", "env", "code"),
    [
        ("$CFM --help | true", {}, 0),
        ("$CFM --help >&-", {}, 0),
        ("$CFM train nosuch 2>&-", {}, 2),
        ("$CFM train nosuch >&- 2>&- <&-", {}, 2),
        ("$CFM prepare digits | true", {}, 0),
        ("$CFM prepare digits >&-", {}, 0),
        ("$CFM prepare digits > /dev/full", {}, 3),
        ("$CFM train --stepz 3", {"COLUMNS": "1"}, 2),
        ("$CFM --help", {"COLUMNS": "1"}, 0),
        ("$CFM --help", {"COLUMNS": "x", "TERM": ""}, 0),
        ("$CFM train ü", {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}, 2),
        ("$CFM train $'\\xff'", {"LC_ALL": "C"}, 2),
        (
            "$CFM train toy --method Δ",
            {"PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"},
            2,
        ),
    ],
)
def test_many_poor_terminals_get_no_traceback(line, env, code):
    assert shell(line, **env).returncode == code


@pytest.mark.faults
def test_python_without_asserts_gives_the_same_answers():
    """Every fast test of inputs, under -O: pytest rewrites its own asserts, the package has none to
    lose.
    """
    here = Path(__file__).parent
    code = """
import random
from tests.faults import api, test_inputs
draw = random.Random(5)
for _ in range(1500):
    kind = draw.choice(["good", "odd", "odd", "bent", "harmless"])
    print(test_inputs.call(draw.choice(sorted(api.CALLS)), draw.randrange(20), kind, draw.randrange(999), draw.randrange(30)))
"""
    root = str(here.parent.parent)
    said = {
        flag: subprocess.run(
            [sys.executable, *flag, "-c", code],
            capture_output=True,
            text=True,
            cwd=root,
            timeout=800,
        )
        for flag in ((), ("-O",))
    }
    assert said[()].returncode == 0, said[()].stderr[-2000:]
    assert said[()].stdout.count("\n") == 1500
    assert said[()].stdout == said[("-O",)].stdout
