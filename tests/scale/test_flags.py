"""Every option that only imagenet reads changes what a command does, or is refused by name and
leaves nothing behind.
"""

import importlib.util
import json
import re
import shlex
import shutil
from dataclasses import asdict

import numpy as np
import pytest
import torch

from cfm_lite import cli
from cfm_lite.data.latents import Latents
from cfm_lite.data.latents.codec import Codec, tiny_vae
from cfm_lite.engine import checkpoint
from cfm_lite.errors import CFMError
from cfm_lite.models import SiT, export_official
from cfm_lite.runs.imagenet import MODELS
from cfm_lite.runs.reads import unread
from cfm_lite.scale import commands
from cfm_lite.scale.train import Options, train_imagenet
from tests.networks import tiny_clip
from tests.pictures import made_folder
from tests.scale import flags
from tests.scale.conftest import SMALL
from tests.test_flags import tree

CAPTIONS = (  # a set with captions, a run on it, and its samples
    "scale prepare --images pictures --captions said.tsv --vae tiny --size 32 --out LC",
    "scale train mscoco --model MMDiT-Ti/2 --latents LC --text clip --out RC --steps 1 --batch 8 --set shard=2",
    "scale sample --checkpoint RC --prompt a --num 6 --steps 2 --out SC",
)


@pytest.fixture(scope="module")
def home(pictures, folder, run, data, tmp_path_factory):
    """Latents, runs, samples, pictures, a VAE and an official file, side by side."""
    home = tmp_path_factory.mktemp("flags")
    for name, there in (("pictures", pictures), ("L", folder), ("R", run)):
        shutil.copytree(there, home / name)
    train_imagenet(SMALL.changed(method="fm", steps=1), data, Options(home / "R2", progress=False))
    made_folder(home / "others", classes=2, each=2)
    for path in (home / "others" / "class0").iterdir():
        path.rename(path.with_name(f"other-{path.name}"))
    told = [
        f"a picture\t{path.relative_to(home / 'pictures')}"
        for path in (home / "pictures").rglob("*.png")
    ]
    (home / "said.tsv").write_text("\n".join(told), encoding="utf-8")
    tiny_vae(3).save_pretrained(home / "folder_of_vae")
    if importlib.util.find_spec("transformers"):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(home)
            tiny_clip(home / "clip", length=14)
            tiny_clip(home / "clip2", length=14, seed=1)
            for line in CAPTIONS:
                assert cli.main(shlex.split(line)) == 0
    torch.manual_seed(0)
    network = SiT(input_size=4, num_classes=3, **MODELS["SiT-Ti/2"])
    torch.nn.init.normal_(network.final_layer.linear.weight, std=0.1)
    torch.save({"ema": export_official(network, format="sit")}, home / "sit.pt")
    assert (
        cli.main(
            [
                "sample",
                "--checkpoint",
                str(home / "R"),
                "--num",
                "6",
                "--steps",
                "2",
                "--out",
                str(home / "S"),
            ]
        )
        == 0
    )
    return home


@pytest.fixture
def here(home, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.setattr("cfm_lite.runs.run.VAE", "tiny")
    return home


def test_what_would_do_nothing_is_refused_by_name_and_leaves_nothing_behind(here, capsys):
    before, wrong = tree(here), []
    for line, words in flags.REFUSED:
        code = cli.main(shlex.split(line))
        said = [
            row
            for row in capsys.readouterr().err.splitlines()
            if not row.startswith("cfm-lite: note:")
        ]
        if (
            code not in (2, 3, 4)
            or words not in said[-1]
            or sum(row.startswith("cfm-lite: error") for row in said) != 1
        ):
            wrong.append(f"{line}: exit {code}: {said}")
        if tree(here) != before:
            wrong.append(f"{line} left {sorted(tree(here).keys() ^ before.keys())}")
            before = tree(here)
    assert not wrong, "\n".join(wrong)


class Reached(CFMError):
    """The work began with these settings."""

    exit_code = 0


class Named(str):
    """Stands for a network: what it was asked for."""

    def to(self, device):
        return self


@pytest.fixture
def outcome(here, monkeypatch, capsys):
    """A function of a command line: what it prints and leaves, or with which settings its long work
    begins.
    """

    def told(value):
        if isinstance(value, torch.nn.Module):
            return [float(p.detach().double().sum()) for p in value.parameters()]
        return value.fingerprint if isinstance(value, Latents | Codec) else str(value)

    def reached(*given, **how):
        options = [
            {name: told(value) for name, value in vars(x).items()}
            if isinstance(x, Options)
            else told(x)
            for x in given
        ]
        raise Reached(f"{options} {sorted((name, told(value)) for name, value in how.items())}")

    for name in ("train_imagenet", "try_out", "prepare", "encode_features"):
        monkeypatch.setattr(commands, name, reached)
    monkeypatch.setattr(commands, "opened_teacher", lambda *args, **how: Named(f"{args} {how}"))

    def left(line):
        before = tree(here)
        code = cli.main(shlex.split(line))
        said = capsys.readouterr()
        files = {}
        for name in sorted(tree(here).keys() - before.keys()):
            path = here / name
            if path.suffix == ".npz":
                with np.load(path, allow_pickle=False) as file:
                    files[name] = {key: file[key].tolist() for key in file.files}
            else:
                files[name] = (
                    path.read_bytes() if path.suffix in (".safetensors", ".json") else None
                )
        for name in sorted(tree(here).keys() - before.keys(), reverse=True):
            shutil.rmtree(here / name) if (here / name).is_dir() else (here / name).unlink()
        errors = [row for row in said.err.splitlines() if row.startswith("cfm-lite: error")]
        return code, re.sub(r"at 0x\w+", "", said.out), errors, files

    return left


@pytest.mark.filterwarnings("ignore:.*biased upwards")
@pytest.mark.parametrize("option", flags.ACTS, ids="-".join)
def test_an_option_changes_what_a_command_does(option, outcome):
    plain, more = flags.ACTS[option]
    if re.search(r"\b(LC|RC|SC)\b", plain):
        pytest.importorskip("transformers", reason="transformers is not installed: cfm-lite[text]")
    whole = more if more.startswith(f"{option[0]} ") else f"{plain} {more}"
    with_it = outcome(whole)
    assert outcome(plain) != with_it
    assert outcome(whole) == with_it


@pytest.mark.parametrize(
    "name", [name for name, value in flags.FIELDS.items() if value is not None]
)
def test_a_field_of_imagenet_s_recipes_changes_the_run(name, data, tmp_path):
    plain = SMALL.changed(steps=2, mirror=False)
    changed = plain.changed(**{name: flags.FIELDS[name]})
    assert not unread(changed, [name])
    left = []
    for label, recipe in (("a", plain), ("b", changed)):
        train_imagenet(recipe, data, Options(tmp_path / label, log_every=1, progress=False))
        saved = checkpoint.load(checkpoint.latest(tmp_path / label / "checkpoints"))
        losses = [
            json.loads(line)["loss"]
            for line in (tmp_path / label / "log.jsonl").read_text().splitlines()
        ]
        left.append((losses, {key: value.tolist() for key, value in saved.weights.items()}))
    assert asdict(plain) != asdict(changed)
    assert left[0] != left[1]
