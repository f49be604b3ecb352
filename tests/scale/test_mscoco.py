"""MS-COCO's path on real pictures whose captions are made from class names: images and captions to
latents, training with REPA and VeCoR, samples of captions, FID and CLIP score; alone and on two
ranks.
"""

import json
import shutil

import numpy as np
import pytest
import torch

from cfm_lite import cli
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
from tests.networks import tiny_clip
from tests.scale.test_end_to_end import go, losses, pictures_of, torchrun

pytest.importorskip("transformers", reason="transformers is not installed: cfm-lite[text]")

PREPARE = "scale prepare --captions coco.json --images pictures --vae tiny --size 32 --rows 16"
TRAIN = (
    "scale train mscoco --model MMDiT-Ti/2 --method repa_vecor --features F --text clip --log-every "
    "1 --set shard=8 batch=16 teacher=vit_tiny_patch16_224 --sample-every 2 --save-every 100"
)
SAMPLE = "scale sample --captions val.json --steps 2 --batch 5 --num 11"


def do(line):
    go(*line.split())


def captions_of(found, left_out=0):
    """The published form of captions made from class names, two or three an image."""
    told = {"images": [], "annotations": []}
    for number, file in enumerate(found.files):
        told["images"].append({"id": number, "file_name": file.key})
        name = found.classes[file.label].split("-")[-1].replace("_", " ")
        for text in [f"a {name}", f"the {name}", f"one {name}"][: 2 + number % 2]:
            told["annotations"].append({"image_id": number, "caption": text})
    told["annotations"] = [row for row in told["annotations"] if row["image_id"] >= left_out]
    return json.dumps(told)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with pictures, captions and a CLIP, and what the commands made there, one process
    each.
    """
    home = tmp_path_factory.mktemp("mscoco")
    found = images.find(pictures_of(home))
    (home / "pictures").symlink_to(found.root)
    (home / "coco.json").write_text(captions_of(found, left_out=3), encoding="utf-8")
    (home / "val.json").write_text(captions_of(found), encoding="utf-8")
    tiny_clip(home / "clip")
    tiny_clip(home / "other", seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        do(f"{PREPARE} --out L")
        patch.setattr("cfm_lite.scale.commands.imagenet", small_teacher)
        do("scale prepare --latents L --images pictures --teacher random --out F")
        do(f"{TRAIN} --latents L --out R --steps 2")
        do(f"{TRAIN} --latents L --out R --steps 4 --resume")
        do(f"{SAMPLE} --checkpoint R --out S")
    return home


def small_teacher(*args, **how):
    return imagenet(*args, **how).changed(teacher="vit_tiny_patch16_224")


@pytest.fixture
def here(home, monkeypatch):
    monkeypatch.chdir(home)
    return home


@pytest.mark.filterwarnings("ignore:.*biased upwards")
def test_pictures_with_captions_are_trained_sampled_and_measured(here, capsys):
    data = Latents("L")
    assert (len(data), data.condition, data.num_classes) == (60, "captions", 0)
    assert len(losses(here / "R")) == 4
    assert (here / "R" / "samples-step-00000002.png").exists()
    run = Run.open("R")
    assert isinstance(run.model, MMDiT)
    assert torch.equal(run.model.null_context, ClipText("clip").null())
    with np.load("S/samples.npz") as file:
        assert file["arr_0"].shape == (11, 32, 32, 3)
        assert file["arr_1"].tolist() == list(range(11))
    do("evaluate --samples S --reference pictures --inception standin")
    told = capsys.readouterr().out
    assert "11 samples of repa_vecor (MMDiT-Ti/2 on mscoco), 4 training steps" in told
    assert "labels of 63 captions" in told
    assert "captions read by clip (" in told
    rows = {row["metric"]: row for row in json.loads((here / "S/metrics.json").read_text())}
    assert "standin_fid_to_63_images" in rows
    score = rows["clip_score"]
    assert score["features"] == "CLIP clip"
    assert 0 <= score["value"] <= 100
    do("evaluate --samples S --reference pictures --inception standin --clip other")
    again = {
        row["metric"]: row["value"] for row in json.loads((here / "S/metrics.json").read_text())
    }
    assert again["clip_score"] != score["value"]
    assert again["standin_recall"] == rows["standin_recall"]["value"]


def test_a_folder_of_samples_grows_and_each_image_shows_its_caption(here, tmp_path):
    more = SAMPLE.replace("--num 11", "--num 13")
    shutil.copytree("S", tmp_path / "S")
    do(f"{more} --checkpoint R --out {tmp_path / 'S'}")
    do(f"{more} --checkpoint R --out {tmp_path / 'whole'}")
    grown, whole = (np.load(tmp_path / name / "samples.npz")["arr_0"] for name in ("S", "whole"))
    assert np.array_equal(grown, whole)
    said = json.loads((tmp_path / "S/settings.json").read_text())["prompts"]
    asked = (
        f"scale sample --checkpoint R --steps 2 --batch 5 --num 5 --out {tmp_path / 'P'} --prompt"
    )
    go(*asked.split(), *said)
    assert np.array_equal(np.load(tmp_path / "P" / "samples.npz")["arr_0"], whole[:5])


def test_two_ranks_prepare_train_and_sample_what_one_process_does(here, tmp_path):
    torchrun(*f"{PREPARE} --out {tmp_path / 'L'}".split())
    assert Latents(tmp_path / "L").fingerprint == Latents("L").fingerprint
    torchrun(*f"{TRAIN} --latents {tmp_path / 'L'} --out {tmp_path / 'R'} --steps 4".split())
    assert losses(tmp_path / "R") == pytest.approx(losses(here / "R"), abs=1e-5)
    torchrun(*f"{SAMPLE} --checkpoint R --out {tmp_path / 'S'}".split())
    two, one = (np.load(folder / "S/samples.npz")["arr_0"] for folder in (tmp_path, here))
    assert np.array_equal(two, one)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            f"{TRAIN} --latents L --out R --steps 6 --resume".replace("clip", "other"),
            "text encoder",
        ),
        (f"{TRAIN} --latents L --out new".replace("--text clip", "--text none"), "no CLIP 'none'"),
        (f"{TRAIN} --latents L --out new --checkpointing", "--checkpointing is for SiTs"),
        ("scale train --model SiT-Ti/2 --latents L --out new", "have captions, and SiT-Ti/2"),
        ("scale train mscoco --model SiT-Ti/2 --latents L --out new", "with one of MMDiT"),
        ("scale train --text clip --latents L --out new", "imagenet has classes"),
        ("scale train mscoco --set model=sit --latents L --out new", "it follows from the network"),
        ("scale train mscoco --set qk_norm=true --latents L --out new", "a field of sit"),
        (f"{SAMPLE} --checkpoint R --out new --text other", "is not the one that the run was"),
        (f"{SAMPLE} --checkpoint R --out new --prompt a", "both say what to draw"),
        (f"{SAMPLE} --checkpoint R --out new".replace("11", "64"), "has captions of 63 images"),
        ("sample --checkpoint R --out new", "there is none; give --prompt"),
        ("sample --checkpoint R --out new --labels 3", "--prompt"),
        ("scale sample --checkpoint R --out new --captions clip/config.json", "as captions"),
        ("export --checkpoint R --out new.pt", "holds a MMDiT"),
    ],
)
def test_what_does_not_fit_captions_is_refused_in_one_line(here, line, words, capsys):
    assert cli.main(line.split()) in (2, 3, 4)
    said = [row for row in capsys.readouterr().err.splitlines() if "error" in row]
    assert len(said) == 1, said
    assert words in said[0]
    assert not list(here.glob("new*"))


@pytest.mark.parametrize("dataset", CAPTIONED)
@pytest.mark.parametrize("method", ["sit", "repa", "repa_delta_fm", "repa_vecor"])
def test_the_presets_of_captions_are_repa_s_and_survive_being_written_down(dataset, method):
    recipe = imagenet(method, model="MMDiT", dataset=dataset)
    assert from_dict(json.loads(json.dumps(recipe.as_dict()))) == recipe
    assert preset_of(recipe) == method
    assert (recipe.batch, recipe.lr, recipe.clip, recipe.ema) == (256, 1e-4, 1.0, 0.9999)
    assert (recipe.steps, recipe.sample_steps, recipe.mirror) == (
        {"mscoco": 150_000, "cc3m": 400_000}[dataset],
        50,
        False,
    )
    assert (recipe.align, recipe.align_block) == (0.5 if "repa" in method else 0, 8)
    assert recipe.perturb == "crop_resize"
    assert any("crop" in row[1] for row in versus(method, dataset)) == ("vecor" in method)
    with torch.device("meta"):
        model = build_model(
            recipe, Made((4, 32, 32), 0, condition="captions", text_shape=(77, 768))
        )
    assert sum(p.numel() for p in model.parameters()) == 505_070_608


def test_a_network_is_for_classes_or_for_captions():
    for model, dataset in (("MMDiT", "imagenet"), ("SiT-XL/2", "mscoco")):
        with pytest.raises(ConfigError, match="Use --model with one of"):
            imagenet("sit", model=model, dataset=dataset)


def test_a_dry_run_of_captions_needs_no_encoder(capsys):
    do("scale train mscoco --model MMDiT-Ti/2 --dry-run --size 64 --set shard=2 --batch 4")
    told = capsys.readouterr().out
    assert "captions (77, 768)" in told
    assert "CLIP ViT-L/14" in told


def test_a_checkpoint_holds_what_the_empty_caption_was_read_as(here):
    saved = checkpoint.load(checkpoint.latest(here / "R" / "checkpoints")).weights
    assert torch.equal(saved["objective.model.null_context"], ClipText("clip").null())
