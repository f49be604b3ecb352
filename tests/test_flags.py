"""Every option changes what a command does, or is refused by name; and what is refused leaves
nothing behind.
"""

import dataclasses
import json
import re
import shlex
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from cfm_lite import cli, demo
from cfm_lite import lab as experiments
from cfm_lite.data import datasets, teachers
from cfm_lite.data.datasets import dataset
from cfm_lite.engine import checkpoint, sharded
from cfm_lite.errors import CFMError, ConfigError
from cfm_lite.runs import loop as runs
from cfm_lite.runs.imagenet import ImageNet
from cfm_lite.runs.reads import check_read, unread
from cfm_lite.runs.recipe import METHODS, Recipe, recipe
from tests import flags
from tests.pictures import made_folder
from tests.scale import flags as scale_flags

FEW = recipe("toy", steps=2, batch=32, shard=32, hidden_size=8)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with two small runs, their samples, a report, and things that are not of cfm_lite."""
    home = tmp_path_factory.mktemp("home")
    data = dataset("two_classes", points=50)
    for name, chosen in (
        ("run", FEW),
        ("delta", FEW.changed(method="delta_fm", weight=0.4, seed=1)),
    ):
        runs.train(chosen, data, out=home / name, progress=False)
        assert (
            cli.main(["sample", "--checkpoint", str(home / name), "--num", "20", "--steps", "2"])
            == 0
        )
    tiny = {"hidden_size": 8, "depth": 1, "num_heads": 2, "steps": 2, "batch": 8, "shard": 8}
    told = recipe("words", **tiny)
    runs.train(told, dataset("words", limit=16), out=home / "words", progress=False)
    made_folder(home / "pictures", classes=2, each=2)
    for name in ("foreign", "latents", "L", "folder.npz", "folder.json", "results"):
        (home / name).mkdir()
    (home / "foreign" / "config.json").write_text('{"mine": 1}')
    (home / "latents" / "index.json").write_text("{}")
    (home / "link.json").symlink_to(home / "run" / "config.json")
    (home / "file").write_text("not a folder")
    (home / "said.tsv").write_text("a dog\ta.png\n")
    Image.new("RGB", (4, 4)).save(home / "picture.png")
    np.savez(home / "data.npz", arr_0=np.zeros(3))
    (home / "mine.png").write_bytes(b"a picture of the user's own")
    torch.save({"ema": {}}, home / "weights.pt")
    return home


@pytest.fixture
def home(made, tmp_path, monkeypatch):
    """A copy of it, in which the commands run; figures, judges and long work are stood in for."""
    copy = shutil.copytree(made, tmp_path / "home", symlinks=True)
    (copy / "link.json").unlink()
    (copy / "link.json").symlink_to(copy / "run" / "config.json")
    monkeypatch.chdir(copy)
    monkeypatch.setenv("CFM_LITE_DATA", str(copy / "none"))
    monkeypatch.setattr(datasets, "PICTURES", 16)  # of words: thousands take seconds to draw
    return copy


class Reached(CFMError):
    """The work began; the message is all that it was given."""

    exit_code = 0


@pytest.fixture
def no_work(monkeypatch):
    """A command that was to be refused ends with its first step."""
    steps = runs._steps

    def one_step(*args):
        for _ in steps(*args):
            raise Reached("it trains")
        yield

    monkeypatch.setattr(runs, "_steps", one_step)
    monkeypatch.setattr(
        experiments.sweep, "_outcomes", lambda *args: (_ for _ in ()).throw(Reached("it trains"))
    )
    monkeypatch.setattr(demo, "_run", lambda job: (_ for _ in ()).throw(Reached("it trains")))


def tree(home):
    """{path: (size, time)} of all that is there."""
    return {
        str(path.relative_to(home)): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in home.rglob("*")
        if path.is_file()
    } | {str(path.relative_to(home)): None for path in home.rglob("*") if path.is_dir()}


@pytest.mark.parametrize("part", range(4))
def test_what_would_do_nothing_is_refused_by_name_and_leaves_nothing_behind(
    part, home, no_work, capsys
):
    before, wrong = tree(home), []
    for line, words in flags.REFUSED[part::4]:
        try:
            code = cli.main(shlex.split(line))
        except SystemExit as stop:
            code = stop.code
        said = capsys.readouterr().err
        errors = [row for row in said.splitlines() if row.startswith("cfm-lite: error:")]
        if (
            code not in (2, 3, 4)
            or len(errors) != 1
            or words not in errors[0]
            or said.splitlines()[-1] != errors[0]
        ):
            wrong.append(f"{line}: exit {code}: {said}")
        after = tree(home)
        if after != before:
            wrong.append(
                f"{line} left "
                f"{sorted(after.keys() ^ before.keys()) or [name for name in after if after[name] != before[name]]}"
            )
            before = after
    assert not wrong, "\n".join(wrong)


def test_the_corrected_command_works_where_the_wrong_one_was_refused(home):
    assert cli.main(shlex.split("train toy --resume --out new --steps 2")) == 4
    assert (
        cli.main(
            shlex.split(
                "train digits --method vecor --set perturb=channel_shuffle --steps 2 --out new"
            )
        )
        == 2
    )
    assert cli.main(shlex.split("train toy --out new --steps 2 --set hidden_size=8")) == 0
    assert cli.main(shlex.split("sample --checkpoint new --out grid.png --num 4 --steps 2")) == 2
    assert cli.main(shlex.split("sample --checkpoint new --out grid.npz --num 4 --steps 2")) == 0
    assert (home / "grid.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("form", ["--out ~/x/run", "--out=~/x/run"])
def test_a_tilde_is_the_home_folder_in_every_form(form, home, monkeypatch):
    monkeypatch.setenv("HOME", str(home / "me"))
    assert (
        cli.main(shlex.split(f"train toy --steps 1 --set hidden_size=8 {form}".replace("~", "'~'")))
        == 0
    )
    assert (home / "me" / "x" / "run" / "config.json").is_file()
    assert (
        cli.main(
            ["sample", "--checkpoint=~/x/run", "--num", "4", "--steps", "2", "--out=~/y/s.npz"]
        )
        == 0
    )
    assert cli.main(["evaluate", "--samples", "~/y/s.npz", "--out", "~/y/m.json"]) == 0
    assert {path.name for path in (home / "me" / "y").iterdir()} == {"s.npz", "s.png", "m.json"}
    assert cli.main(["compare", "toy", "--quick", "--list", "--out=~/z"]) == 0
    assert not [path for path in home.rglob("*") if "~" in path.name]


# ---- what acts


@pytest.fixture
def outcome(home, monkeypatch, capsys):
    """A function of a command line: what it leaves and prints, without times; slow work counts as
    what it is given.
    """

    def reached(*given, **how):
        raise Reached(f"{given} {sorted(how.items())}")

    monkeypatch.setattr(sharded, "compile_parts", lambda module: reached(type(module)))
    monkeypatch.setattr(demo, "_run", reached)
    monkeypatch.setattr(demo, "_work", lambda jobs, *_: reached(*jobs))
    monkeypatch.setattr(
        experiments.sweep, "_outcomes", lambda todo, *rest: reached(*(job.key for job in todo.jobs))
    )
    monkeypatch.setattr(
        "cfm_lite.cli.samples.picture", lambda run, x, y, path: path.touch() or path
    )

    def left(line):
        before = tree(home)
        code = cli.main(shlex.split(line))
        said = capsys.readouterr()
        errors = [row for row in said.err.splitlines() if row.startswith("cfm-lite: error")]
        text = re.sub(
            r"about +[\d.]+ s|\d+\.\d s|about [\d.]+ min|at 0x\w+",
            "",
            said.out.replace(str(home), "") + "".join(errors),
        )
        files = {
            name: content(home / name)
            for name, facts in tree(home).items()
            if before.get(name, 0) != facts
        }
        for name in sorted(tree(home).keys() - before.keys(), reverse=True):
            shutil.rmtree(home / name) if (home / name).is_dir() else (home / name).unlink(
                missing_ok=True
            )
        return code, text, files

    return left


WITHOUT = {}  # what a command line without the option leaves: many options share one


def content(path):
    """What stands in a file, without the facts of the sitting."""
    if path.name.endswith(".info.json"):
        return None  # when and where
    if path.name == "config.json":
        return json.loads(path.read_text()).get("recipe")
    if path.suffix == ".jsonl":
        return [
            (line["step"], line["loss"]) for line in map(json.loads, path.read_text().splitlines())
        ]
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name].tolist() for name in file.files}
    return (
        None
        if path.is_dir()
        or path.suffix not in (".safetensors", ".json")
        or path.name == "state.json"
        else path.read_bytes()
    )


@pytest.mark.parametrize("option", flags.ACTS, ids="-".join)
def test_an_option_changes_what_a_command_does(option, outcome):
    plain, more = flags.ACTS[option]
    whole = more if more.startswith(f"{option[0]} ") else f"{plain} {more}"
    if plain not in WITHOUT:
        WITHOUT[plain] = outcome(plain)
        assert (
            outcome(plain) == WITHOUT[plain]
        )  # the difference is the option's, and not that of another second
    assert outcome(whole) != WITHOUT[plain]


def test_every_option_stands_in_the_tables():
    refused = {
        (flags.command_of(line), word[2:].partition("=")[0].replace("-", "_"))
        for line, words in [*flags.REFUSED, *scale_flags.REFUSED]
        for word in shlex.split(line)
        if word.startswith("--") and (word in words or word.replace("--no-", "--") in words)
    }
    acts = set(flags.ACTS) | set(scale_flags.ACTS)
    acts |= {option for option, first in flags.SHARED.items() if first in acts}
    every = set(flags.options())
    assert every - acts - refused - flags.ON_A_DEVICE == set()
    assert acts - every == set()
    assert every - acts - flags.ON_A_DEVICE == set()  # each option does something somewhere


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a machine with CUDA it is used")
def test_a_device_that_would_not_be_used_is_refused(home, capsys):
    lines = (
        "demo --quick --out new",
        "train toy",
        "sample --checkpoint run",
        "evaluate --samples run/samples.npz",
        "compare toy --quick",
    )
    for line in (
        *lines,
        "scale prepare --images pictures --out new",
    ):
        before = tree(home)
        assert cli.main([*shlex.split(line), "--device", "cuda"]) == 2, line
        assert "device" in capsys.readouterr().err
        assert tree(home) == before


# ---- recipe fields

TOY = Recipe(
    dataset="two_classes",
    hidden_size=8,
    depth=2,
    batch=16,
    shard=8,
    steps=3,
    lr=0.01,
    sample_steps=2,
    label_dropout=0.5,
)
DIGITS = TOY.changed(dataset="digits")
SIT = DIGITS.changed(model="sit", patch_size=4, num_heads=2)
UNET = DIGITS.changed(model="unet", num_heads=2)
SPREAD, WRONG = (
    TOY.changed(method="dispersive"),
    TOY.changed(method="vecor", perturb="channel_shuffle", weight=0.2),
)
FIELDS = {  # field: (a recipe, another value), and the run is another
    "dataset": (TOY, "moons"),
    "model": (DIGITS, "sit"),
    "hidden_size": (TOY, 12),
    "depth": (TOY, 3),
    "num_heads": (SIT, 4),
    "patch_size": (SIT, 2),
    "qk_norm": (SIT, True),
    "levels": (UNET, 1),
    "method": (TOY, "delta_fm"),
    "weight": (TOY.changed(method="delta_fm"), 0.3),
    "k": (WRONG, 2),
    "perturb": (DIGITS.changed(method="vecor_latent"), "cutmix"),
    "spread": (SPREAD, 2.0),
    "variant": (SPREAD, "hinge"),
    "tau": (SPREAD, 2.0),
    "block": (SPREAD, 2),
    "views": (TOY.changed(method="contrastive", coupling="minibatch_ot"), "restricted"),
    "align": (DIGITS.changed(method="repa", align_block=1), 2.0),
    "align_block": (DIGITS.changed(method="repa", align_block=1), 2),
    "also": (TOY, "dispersive"),
    "path": (TOY, "cosine"),
    "time": (TOY, "logit_normal"),
    "time_mean": (TOY.changed(time="logit_normal"), -1.0),
    "coupling": (TOY, "minibatch_ot"),
    "label_dropout": (TOY, 0.0),
    "shard": (TOY, 16),
    "batch": (TOY, 24),
    "steps": (TOY, 4),
    "lr": (TOY, 0.1),
    "weight_decay": (TOY, 0.5),
    "beta1": (TOY, 0.5),
    "beta2": (TOY, 0.5),
    "warmup": (TOY, 5),
    "cooldown": (TOY, 1.0),
    "schedule": (TOY.changed(cooldown=1.0), "cosine"),
    "clip": (TOY, 0.01),
    "ema": (TOY, 0.0),
    "ema2": (TOY, 0.5),
    "precision": (SIT, "bf16"),
    "accumulate": (TOY, 2),
    "seed": (TOY, 1),
    "solver": (TOY, "heun"),
    "sample_steps": (TOY, 3),
    "guidance": (TOY, 3.0),
    "boost": (TOY, 0.5),
    "boost_power": (TOY.changed(boost=0.5), 3.0),
}
OF_IMAGENET = {field.name for field in dataclasses.fields(ImageNet)} - {
    field.name for field in dataclasses.fields(Recipe)
}


def left_by(chosen, folder):
    """The bytes of the weights of a short run, and samples drawn as its recipe says."""
    data = dataset(chosen.dataset, points=50)
    run = runs.train(chosen, data, out=folder, progress=False, log_every=1)
    arm = experiments.ARMS["fm"]
    torch.nn.init.normal_(
        list(run.model.parameters())[-1], generator=torch.Generator().manual_seed(0)
    )  # else labels are hardly seen
    x = experiments.draw_samples(
        arm, run, data, torch.arange(6) % 2, chosen.sample_steps, chosen.seed
    )
    return checkpoint.load(checkpoint.latest(folder / "checkpoints")).weights, x


def equal(a, b):
    weights = a[0].keys() == b[0].keys() and all(
        torch.equal(value, b[0][name]) for name, value in a[0].items()
    )
    return weights and a[1].shape == b[1].shape and torch.equal(a[1], b[1])


def test_samples_replace_the_picture_beside_their_npz_and_no_other(home, capsys):
    line = "sample --checkpoint run --num 20 --steps 2"
    for _ in range(2):
        assert cli.main([*line.split(), "--out", "new.npz"]) == 0
    (home / "run" / "samples.npz").unlink()  # the picture in the run's folder is the run's
    assert cli.main(line.split()) == 0
    (home / "new.npz").unlink()
    assert cli.main([*line.split(), "--out", "new.npz"]) == 2
    assert "new.png does not belong to new.npz" in capsys.readouterr().err


def test_only_what_a_command_wrote_itself_is_replaced(home, capsys):
    Image.new("RGB", (4, 4)).save(home / "own.png")
    (home / "own.json").write_text('{"name": "mine"}')
    row = {"method": "fm", "dataset": "toy", "metric": "mmd", "value": 0.1}
    (home / "toy.json").write_text(json.dumps([row]))  # of a comparison
    few = "sample --checkpoint run --num 20 --steps 2 --out"
    said = "sample --checkpoint words --prompt red7 --num 1 --steps 2 --out"
    measured = "evaluate --samples run --out"
    for line in (f"{few} pair.npz", f"{said} new.png", f"{measured} rows.json"):
        assert cli.main(line.split()) == 0
        assert cli.main(line.split()) == 0  # its own is replaced
    (home / "pair.png").write_bytes((home / "own.png").read_bytes())
    before = tree(home)
    for line, words in (
        (f"{few} pair.npz", "pair.png is no picture of cfm-lite sample"),
        (f"{said} own.png", "own.png is no picture of cfm-lite sample"),
        (f"{measured} own.json", "own.json holds no rows of cfm-lite evaluate"),
        (f"{measured} toy.json", "toy.json holds no rows of cfm-lite evaluate"),
    ):
        assert cli.main(line.split()) == 2, line
        told = capsys.readouterr().err
        assert words in told
        assert "choose another --out" in told
    assert tree(home) == before
    (home / "pair.png").unlink()
    assert cli.main(f"{few} pair.npz".split()) == 0  # the remedy


def test_the_rows_of_one_file_of_samples_do_not_take_the_place_of_another_s(home, capsys):
    (home / "two").mkdir()
    for name in ("a", "b"):
        shutil.copy(home / "run" / "samples.npz", home / "two" / f"{name}.npz")
    assert cli.main(["evaluate", "--samples", "two/a.npz"]) == 0
    rows = (home / "two" / "metrics.json").read_bytes()
    assert {row["file"] for row in json.loads(rows)} == {"a.npz"}
    assert cli.main(["evaluate", "--samples", "two/a.npz"]) == 0
    for _ in range(2):
        assert cli.main(["evaluate", "--samples", "two/b.npz"]) == 0
        assert "two/b-metrics.json" in capsys.readouterr().out
    assert (home / "two" / "metrics.json").read_bytes() == rows
    told = json.loads((home / "two" / "b-metrics.json").read_bytes())
    assert {row["file"] for row in told} == {"b.npz"}


@pytest.fixture
def untrained_teacher(monkeypatch):
    torch.manual_seed(0)
    small = teachers.SmallTeacher("digits").requires_grad_(False).eval()
    monkeypatch.setattr(teachers, "teacher_for", lambda name: small)


@pytest.mark.parametrize("name", FIELDS)
def test_a_recipe_field_changes_the_run(name, tmp_path, untrained_teacher):
    chosen, value = FIELDS[name]
    assert not unread(chosen.changed(**{name: value}), [name])
    assert not equal(
        left_by(chosen, tmp_path / "a"), left_by(chosen.changed(**{name: value}), tmp_path / "b")
    )


def test_every_recipe_field_stands_in_the_tables():
    assert set(FIELDS) == {field.name for field in dataclasses.fields(Recipe)}
    assert set(scale_flags.FIELDS) == OF_IMAGENET | {"align", "align_block"}


@pytest.mark.parametrize("name", ["tau", "k", "views", "align", "perturb", "num_heads", "schedule"])
def test_a_field_that_is_refused_changes_no_bit(name, tmp_path):
    value = {**{field: value for field, (_, value) in FIELDS.items()}, "schedule": "constant"}[name]
    with pytest.raises(ConfigError, match=f"--set {name} would change nothing"):
        check_read(TOY.changed(**{name: value}), [name])
    assert equal(
        left_by(TOY, tmp_path / "a"), left_by(TOY.changed(**{name: value}), tmp_path / "b")
    )


def test_what_one_method_reads_another_refuses():
    """Over all methods and fields: the fields refused for a method are exactly those that its terms
    have no use for.
    """
    for method in METHODS:
        for name in (
            "weight",
            "k",
            "perturb",
            "spread",
            "variant",
            "tau",
            "block",
            "views",
            "align",
            "align_block",
        ):
            read = {
                "delta_fm": ("weight",),
                "contrast_by_condition": ("weight",),
                "dispersive": ("spread", "variant", "tau", "block"),
                "contrastive": ("spread", "variant", "tau", "block", "views"),
                "repa": ("align", "align_block"),
            }.get(method, ("weight", "k", "perturb") if method.startswith("vecor") else ())
            assert bool(unread(Recipe(method=method), [name])) == (name not in read), (method, name)
