"""The commands of docs/captions.md, with small sizes, on real pictures whose captions are made from
class names: alone, and under torchrun on two ranks.
"""

import json
import re
import shlex
import shutil

import numpy as np
import pytest
import torch

from cfm_lite import cli
from cfm_lite._internal import checks
from cfm_lite._internal.terminal import Notes
from cfm_lite.data import images
from cfm_lite.data.latents import Latents
from cfm_lite.engine import checkpoint
from cfm_lite.errors import ConfigError
from cfm_lite.models import MMDiT
from cfm_lite.models.text import ClipText
from cfm_lite.runs import Run
from cfm_lite.runs.imagenet import CAPTIONED, imagenet, preset_of, versus
from cfm_lite.runs.recipe import build_model, from_dict
from cfm_lite.scale.dry_run import Made
from tests.documents import blocks
from tests.networks import tiny_clip
from tests.scale.test_end_to_end import go, losses, pictures_of, torchrun

pytest.importorskip("transformers", reason="transformers is not installed: cfm-lite[text]")

SMALLER = {"MMDiT": "MMDiT-Ti/2", "40192": "11"}
MORE = {  # what makes a command small
    "prepare": "--vae tiny --size 32 --rows 16",
    "train": "--text clip --teacher random --steps 4 --log-every 1 --sample-every 2 --set shard=8 "
    "batch=16 teacher=vit_tiny_patch16_224",
    "sample": "--steps 2 --batch 5",
    "evaluate": "--inception standin",
}
MADE = ("latents-coco", "runs/coco", "samples-coco")
VAL = "captions_val2014.json"
NEW = "scale train mscoco --model MMDiT-Ti/2 --latents latents-coco --out new"
DRAW = "scale sample --checkpoint runs/coco --out new"


def commands():
    """{command: its arguments, small} of the page."""
    found = {}
    for line in blocks("docs/captions.md")[0].text.splitlines():
        words = [SMALLER.get(word, word) for word in line.partition("#")[0].split()]
        words = words[words.index("--" if "--" in words else "cfm-lite") + 1 :]
        name = words[words[0] == "scale"]
        found[name] = [*words, *MORE[name].split()]
    return found


COMMANDS = commands()


def elsewhere(name, folder, **changes):
    """A command of the page that puts what it makes into another folder."""
    out = COMMANDS[name].index("--out") + 1
    words = [changes.get(f"_{word}", word) for word in COMMANDS[name]]
    return [*words[:out], f"{folder}/{words[out]}", *words[out + 1 :]]


def drawn(folder):
    with np.load(folder / "samples-coco" / "samples.npz") as file:
        return file["arr_0"]


def told(found, left_out):
    """The published form of captions made from class names, two or three an image; the first
    `left_out` images have none.
    """
    said = {"images": [], "annotations": []}
    for number, file in enumerate(found.files):
        said["images"].append({"id": number, "file_name": file.key})
        name = found.classes[file.label].split("-")[-1].replace("_", " ")
        texts = [f"a {name}", f"the {name}", f"one {name}"][: 2 + number % 2]
        if number >= left_out:
            said["annotations"] += [{"image_id": number, "caption": text} for text in texts]
    return json.dumps(said)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with pictures, captions and two CLIPs, and what the commands made there."""
    home = tmp_path_factory.mktemp("mscoco")
    found = images.find(pictures_of(home))
    for name, left_out in (("train2014", 3), ("val2014", 0)):
        (home / name).symlink_to(found.root)
        (home / f"captions_{name}.json").write_text(told(found, left_out), encoding="utf-8")
    tiny_clip(home / "clip", length=14)
    tiny_clip(home / "other", length=14, seed=1)
    tiny_clip(home / "short")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        for name in ("prepare", "train", "sample"):
            go(*COMMANDS[name])
    return home


@pytest.fixture
def here(home, monkeypatch):
    monkeypatch.chdir(home)
    return home


@pytest.mark.filterwarnings("ignore:.*biased upwards")
def test_pictures_with_captions_are_trained_sampled_and_measured(here, capsys):
    data = Latents("latents-coco")
    assert (len(data), data.condition, data.num_classes) == (60, "captions", 0)
    assert len(losses(here / "runs/coco")) == 4
    assert (here / "runs/coco/samples-step-00000002.png").exists()
    run = Run.open("runs/coco")
    assert isinstance(run.model, MMDiT)
    assert torch.equal(run.model.null_context, ClipText("clip").null())
    # a run is also sampled from another folder than it was trained in
    assert run.spec.text == str(here / "clip")
    with np.load("samples-coco/samples.npz") as file:
        assert file["arr_0"].shape == (11, 32, 32, 3)
        assert file["arr_1"].tolist() == list(range(11))
    values = []
    for more in ([], ["--clip", "other"]):
        go(*COMMANDS["evaluate"], *more)
        rows = json.loads((here / "samples-coco/metrics.json").read_text(encoding="utf-8"))
        values.append({row["metric"]: row for row in rows})
    said = capsys.readouterr().out
    assert "11 samples of repa_vecor (MMDiT-Ti/2 on mscoco), 4 training steps" in said
    assert "seed 0, 63 captions; codec tiny" in said
    assert f"captions read by {here / 'clip'} (" in said
    one, other = values
    assert "standin_fid_to_63_images" in one
    assert (one["clip_score"]["features"], other["clip_score"]["features"]) == (
        f"CLIP {here / 'clip'}",
        "CLIP other",
    )
    assert 0 <= one["clip_score"]["value"] <= 100
    assert one["clip_score"]["value"] != other["clip_score"]["value"]


@pytest.mark.parametrize(("num", "words"), [(1, "of 1 caption\n"), (5, "of 5 captions\n")])
def test_the_captions_that_were_drawn_are_counted(here, tmp_path, num, words, capsys):
    out = tmp_path / "new"
    go(
        *f"{DRAW} --captions {VAL} --steps 1 --num {num}".replace(
            "--out new", f"--out {out}"
        ).split()
    )
    assert f"{num} samples in {out / 'samples.npz'}, {words}" in capsys.readouterr().out


def test_a_folder_of_samples_grows_and_each_image_shows_its_caption(here, tmp_path):
    shutil.copytree("samples-coco", tmp_path / "grown" / "samples-coco")
    for name in ("grown", "whole"):
        go(*elsewhere("sample", tmp_path / name, _11="13"))
    assert np.array_equal(drawn(tmp_path / "grown"), drawn(tmp_path / "whole"))
    settings = tmp_path / "grown" / "samples-coco" / "settings.json"
    said = json.loads(settings.read_text(encoding="utf-8"))["prompts"]
    asked = "scale sample --checkpoint runs/coco --steps 2 --batch 5 --num 5 --prompt"
    go(*asked.split(), *said, "--out", str(tmp_path / "samples-coco"))
    assert np.array_equal(drawn(tmp_path), drawn(tmp_path / "whole")[:5])


@pytest.mark.timeout(600)
def test_two_ranks_do_what_one_process_does(here, tmp_path):
    torchrun(*elsewhere("prepare", tmp_path))
    assert Latents(tmp_path / "latents-coco").fingerprint == Latents("latents-coco").fingerprint
    torchrun(*elsewhere("train", tmp_path))
    assert losses(tmp_path / "runs/coco") == pytest.approx(losses(here / "runs/coco"), abs=1e-5)
    torchrun(*elsewhere("sample", tmp_path))
    assert np.array_equal(drawn(tmp_path), drawn(here))


def test_checkpointing_changes_no_bit_of_a_run_and_resumes(here, tmp_path):
    whole = checkpoint.load(checkpoint.latest(here / "runs/coco/checkpoints"))
    go(*elsewhere("train", tmp_path, _4="2"), "--checkpointing")
    go(*elsewhere("train", tmp_path), "--checkpointing", "--resume")
    assert losses(tmp_path / "runs/coco") == losses(here / "runs/coco")
    again = checkpoint.load(checkpoint.latest(tmp_path / "runs/coco/checkpoints"))
    assert all(torch.equal(x, again.weights[name]) for name, x in whole.weights.items())


REFUSED = [
    (f"{NEW} --text ./none", "there is no CLIP"),
    (f"{NEW} --set model=sit", "it follows from the network"),
    (f"{NEW} --set qk_norm=true", "a field of sit, and 'mscoco' has captions, which only mmdit"),
    (NEW.replace("MMDiT", "SiT"), "with one of MMDiT"),
    ("scale train --model SiT-Ti/2 --latents latents-coco --out new", "have captions, and SiT"),
    ("scale train --text clip --latents latents-coco --out new", "imagenet has classes"),
    (f"{DRAW} --captions {VAL} --text other", "is not the one that the run was trained with"),
    (f"{NEW} --start runs/coco --text other", "is not the one that the run was trained with"),
    (f"{DRAW} --captions {VAL} --prompt a", "both say what to draw"),
    (f"{DRAW} --captions {VAL} --num 64", "has captions of 63 images"),
    (f"{DRAW} --captions clip/config.json", "cannot be read as captions"),
    (DRAW, "needs a caption, and none was given; give --prompt"),
    (f"{DRAW} --prompt ''", "a caption is empty"),
    (f"{DRAW} --prompt a --labels 3", "draws captions"),
    ("export --checkpoint runs/coco --out new.pt", "is a MMDiT"),
]


@pytest.mark.parametrize(("line", "words"), REFUSED)
def test_what_does_not_fit_captions_is_refused_in_one_line(here, line, words, capsys):
    assert cli.main(shlex.split(line)) in (2, 3, 4)
    said = [row for row in capsys.readouterr().err.splitlines() if "cfm-lite: error" in row]
    assert len(said) == 1, said
    assert words in said[0]
    assert not list(here.glob("new*"))


LONG = "a brown dog on a mat"
CUT = [
    (f"{DRAW} --prompt '{LONG}' --num 1", f"the caption is longer .*: '{LONG}' has 15"),
    (f"{DRAW} --prompt dog --negative '{LONG}' --num 1", f"1 of 2 captions is .*: '{LONG}' has 15"),
    (f"{DRAW} --captions long.tsv", "2 of 3 captions are longer than the 12 tokens"),
    (f"{NEW} --text short --steps 1 --set shard=8 batch=16", "150 of 150 captions are longer"),
]


@pytest.mark.parametrize(("line", "words"), CUT)
@pytest.mark.filterwarnings("default:.*tokens that the text encoder reads")
def test_captions_that_the_encoder_cuts_are_told_once(
    here, tmp_path, line, words, monkeypatch, capsys
):
    monkeypatch.setattr(checks, "_warned", set())
    monkeypatch.setattr(Notes, "shown", set())
    rows = [f"{LONG}\ta.png", "dog\tb.png", f"{LONG} too\tc.png"]
    (here / "long.tsv").write_text("\n".join(rows), encoding="utf-8")
    go(*shlex.split(line.replace("--out new", f"--out {tmp_path / 'new'}")))
    notes = [row for row in capsys.readouterr().err.splitlines() if "longer than" in row]
    assert len(notes) == 1
    assert re.search(f"cfm-lite: note: {words}", notes[0])


def test_a_run_is_not_resumed_with_another_text_encoder(here, capsys):
    words = [
        "other" if word == "clip" else "6" if word == "4" else word for word in COMMANDS["train"]
    ]
    assert cli.main([*words, "--resume"]) == 4
    assert "another text encoder" in capsys.readouterr().err


@pytest.mark.parametrize("dataset", CAPTIONED)
@pytest.mark.parametrize("method", ["sit", "repa", "repa_delta_fm", "repa_vecor"])
def test_the_presets_of_captions_are_repa_s_and_survive_being_written_down(dataset, method):
    recipe = imagenet(method, model="MMDiT", dataset=dataset)
    assert from_dict(json.loads(json.dumps(recipe.as_dict()))) == recipe
    assert preset_of(recipe) == method
    assert (recipe.batch, recipe.lr, recipe.clip, recipe.ema) == (256, 1e-4, 1.0, 0.9999)
    steps = {"mscoco": 150_000, "cc3m": 400_000}[dataset]
    assert (recipe.steps, recipe.sample_steps, recipe.mirror) == (steps, 50, False)
    assert (recipe.align, recipe.align_block) == (0.5 if "repa" in method else 0, 8)
    assert recipe.perturb == "crop_resize"
    assert any("crop" in row[1] for row in versus(method, dataset)) == ("vecor" in method)


def test_the_network_of_captions_is_repa_s():
    made = Made((4, 32, 32), 0, condition="captions", text_shape=(77, 768))
    with torch.device("meta"):
        model = build_model(imagenet("sit", model="MMDiT"), made)
    assert sum(p.numel() for p in model.parameters()) == 505_070_608
    assert not model.config["zero_init"]
    assert not model.config["rotary"]


def test_a_network_is_for_classes_or_for_captions():
    for model, dataset in (("MMDiT", "imagenet"), ("SiT-XL/2", "mscoco")):
        with pytest.raises(ConfigError, match="Use --model with one of"):
            imagenet("sit", model=model, dataset=dataset)


def test_a_dry_run_of_captions_needs_no_encoder_and_less_memory_with_checkpointing(capsys):
    line, predicted = (
        f"{NEW} --dry-run --size 64 --batch 32".replace("--latents latents-coco", ""),
        [],
    )
    for more in ([], ["--checkpointing"]):
        go(*line.split(), *more)
        said = capsys.readouterr().out
        assert "captions (77, 768)" in said
        assert "CLIP ViT-L/14" in said
        # the table is not about this tiny network in float32
        assert re.search(r"^setting +paper +the preset at full scale$", said, re.MULTILINE)
        predicted.append(float(re.findall(r"([\d.]+) GiB of tensors were predicted", said)[0]))
    assert predicted[1] < predicted[0]


def test_a_checkpoint_holds_what_the_empty_caption_was_read_as(here):
    saved = checkpoint.load(checkpoint.latest(here / "runs/coco/checkpoints")).weights
    assert torch.equal(saved["objective.model.null_context"], ClipText("clip").null())
