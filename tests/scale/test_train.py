"""A run on latents: what it leaves, how it goes on, and what it refuses."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cfm_lite import cli
from cfm_lite._internal import terminal
from cfm_lite.data import images
from cfm_lite.data.latents import Latents, prepare
from cfm_lite.engine import checkpoint
from cfm_lite.engine.parallel import World
from cfm_lite.errors import ConfigError, DataError, DiskFullError, ResumeMismatchError
from cfm_lite.models import SiT, export_official, load_official
from cfm_lite.models.encoders import teacher as encoder
from cfm_lite.runs import recipe as recipes
from cfm_lite.runs.imagenet import imagenet
from cfm_lite.scale import dry_run as scale_dry_run
from cfm_lite.scale import train as scale_train
from cfm_lite.scale.dry_run import Made, dry_run
from cfm_lite.scale.train import Options, train_imagenet
from tests.logs import lines
from tests.networks import same_parameters
from tests.scale.conftest import SMALL


def go(recipe, data, out, **how):
    return train_imagenet(recipe, data, Options(out, **({"log_every": 1, "progress": False} | how)))


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_run_leaves_config_log_mean_and_checkpoint(run, data):
    config = json.loads((run / "config.json").read_text())
    assert config["recipe"]["network"] == "SiT-Ti/2"
    assert config["data"]["fingerprint"] == data.fingerprint
    assert config["data"]["vae"] == "tiny"
    assert len(losses(run)) == 6
    assert (run / "latent_mean.npy").exists()
    assert checkpoint.latest(run / "checkpoints").name == "step-00000006"


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(data, run, tmp_path):
    go(SMALL.changed(steps=3), data, tmp_path / "run")
    resumed = go(SMALL, data, tmp_path / "run", resume=True)
    assert losses(tmp_path / "run") == losses(run)
    whole = checkpoint.load(checkpoint.latest(run / "checkpoints"))
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, whole.weights[f"ema.{name}"])


@pytest.mark.parametrize("micro", [2, 4])
def test_the_micro_batch_does_not_change_the_loss_curve(data, run, tmp_path, micro):
    go(SMALL, data, tmp_path / "run", micro_batch=micro)
    assert losses(tmp_path / "run") == pytest.approx(losses(run), abs=1e-6)
    assert (
        f"{8 // micro} micro-batches x {micro}"
        in json.loads((tmp_path / "run" / "config.json").read_text())["split"]
    )


def test_checkpointing_does_not_change_the_loss_curve(data, run, tmp_path):
    go(SMALL, data, tmp_path / "run", checkpointing=True)
    assert losses(tmp_path / "run") == losses(run)
    argv = [
        "scale",
        "train",
        "--model",
        "SiT-Ti/2",
        "--dry-run",
        "--checkpointing",
        "--batch",
        "8",
        "--set",
        "shard=8",
        "size=32",
    ]
    assert cli.main([*argv, "--out", str(tmp_path / "tried")]) == 0


@pytest.mark.parametrize("method", ["sit", "delta_fm", "vecor", "dispersive", "dispersive_torch"])
def test_bf16_losses_are_those_of_float32_within_two_percent(method, data, tmp_path):
    recipe = imagenet(method, model="SiT-Ti/2", batch=8, shard=2, steps=40, size=32)
    for precision in ("float32", "bf16"):
        go(recipe.changed(precision=precision), data, tmp_path / precision)
    wide, half = losses(tmp_path / "float32"), losses(tmp_path / "bf16")
    assert half[:12] == pytest.approx(
        wide[:12], rel=0.02
    )  # later, two runs of any rounding go ways of their own
    assert sum(half) == pytest.approx(sum(wide), rel=0.01)
    assert half != wide


@pytest.mark.filterwarnings("always")
@pytest.mark.parametrize(
    "words",
    [
        "train toy --steps 1",
        "compare toy --quick --seeds 1 --arms fm",
        "scale train --dry-run --model SiT-Ti/2 --batch 8 --set size=32 shard=8",
    ],
)
def test_each_command_that_trains_says_once_that_bf16_is_slow_on_this_processor(
    words, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(recipes, "_cpu_has_bf16", lambda: False)
    monkeypatch.setattr(terminal.Notes, "shown", set())
    argv = words.split()
    argv += [] if "--set" in argv else ["--set", "batch=8", "hidden_size=8"]
    argv += ["precision=bf16", "--out", str(tmp_path / "run"), "--device", "cpu"]
    assert cli.main(argv) == 0
    assert capsys.readouterr().err.count("--set precision=float32 is faster here") == 1


def test_the_loss_falls(data, tmp_path):
    go(SMALL.changed(steps=40), data, tmp_path / "run")
    curve = losses(tmp_path / "run")
    assert sum(curve[-5:]) < 0.8 * sum(curve[:5])


def another_teacher(folder):
    """A file of other weights than those of a random teacher, which come from the run's seed."""
    torch.manual_seed(7)
    vit = encoder("vit_tiny_patch16_224", grid=2, pretrained=False).vit
    torch.save(vit.state_dict(), folder / "vit.pth")
    return str(folder / "vit.pth")


def test_repa_sees_the_pictures_and_another_teacher_is_another_run(data, pictures, tmp_path):
    recipe = imagenet(
        "repa_vecor",
        model="SiT-Ti/2",
        batch=8,
        shard=2,
        steps=2,
        size=32,
        teacher="vit_tiny_patch16_224",
    )
    go(recipe, data, tmp_path / "a", images=pictures, teacher="random")
    torch.manual_seed(1)  # a random teacher comes from the run's seed
    go(recipe, data, tmp_path / "again", images=pictures, teacher="random")
    go(recipe, data, tmp_path / "b", images=pictures, teacher=another_teacher(tmp_path))
    assert losses(tmp_path / "again") == losses(tmp_path / "a")
    line = json.loads((tmp_path / "a" / "log.jsonl").read_text().splitlines()[0])
    assert {"flow_matching", "repulsion", "alignment"} <= set(line)
    assert losses(tmp_path / "a") != losses(tmp_path / "b")
    with pytest.raises(ConfigError, match="--images"):
        go(recipe, data, tmp_path / "c", teacher="random")
    shutil.copytree(pictures, tmp_path / "moved")
    (tmp_path / "moved" / "class1" / "003.png").unlink()
    wrong = r"003\.png is not there, and the latents in .* Give the folder .* with --images, or"
    with pytest.raises(DataError, match=wrong):
        go(
            recipe.changed(steps=3),
            data,
            tmp_path / "d",
            images=tmp_path / "moved",
            teacher="random",
        )


def test_an_official_checkpoint_is_fine_tuned_and_exported_again(data, tmp_path):
    official = SiT(4, 2, 4, 64, 2, 2, num_classes=3)
    loaded = load_official(export_official(official, format="repa"), format="repa", num_heads=2)
    run = go(SMALL, data, tmp_path / "run", start=loaded)
    assert not same_parameters(run.model, official)
    back = load_official(export_official(run.model, format="sit"), format="sit", num_heads=2)
    assert same_parameters(back, run.model)


def test_tensorboard_writes_beside_the_lines(data, tmp_path):
    go(SMALL.changed(steps=2), data, tmp_path / "run", tensorboard=True)
    shown = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    written = lines(tmp_path / "run")
    assert (
        set(shown.Tags()["scalars"])
        == set(written[0]) - {"step"}
        >= {"loss", "lr", "images_per_second", "seconds", "memory"}
    )
    for name in shown.Tags()["scalars"]:
        events = [(event.step, event.value) for event in shown.Scalars(name)]
        assert events == [(line["step"], pytest.approx(line[name])) for line in written]


def test_samples_on_the_way_change_no_bit_and_stand_beside_the_scalars(data, run, tmp_path):
    out = tmp_path / "seen"
    go(SMALL.changed(sample_steps=2), data, out, sample_every=3, tensorboard=True)
    assert losses(out) == losses(run)
    plain, seen = (
        checkpoint.load(checkpoint.latest(folder / "checkpoints")).weights for folder in (run, out)
    )
    assert all(torch.equal(plain[name], seen[name]) for name in plain)
    assert sorted(path.name for path in out.glob("samples-step-*")) == [
        "samples-step-00000003.png",
        "samples-step-00000006.png",
    ]
    with Image.open(out / "samples-step-00000006.png") as sheet:
        assert sheet.size == (8 * 32, 2 * 32)
        last = np.asarray(sheet)
    shown = EventAccumulator(str(out / "tensorboard")).Reload()
    assert [event.step for event in shown.Images("samples")] == [3, 6]
    assert (
        cli.main(
            [
                "scale",
                "sample",
                "--checkpoint",
                str(out),
                "--num",
                "16",
                "--batch",
                "16",
                "--out",
                str(tmp_path / "S"),
            ]
        )
        == 0
    )
    with np.load(
        tmp_path / "S" / "samples.npz", allow_pickle=False
    ) as file:  # what the finished run gives, for the same seed
        assert np.array_equal(file["arr_0"][0], last[:32, :32])


def test_samples_on_the_way_need_the_vae_before_the_run_begins(data, tmp_path, monkeypatch):
    def gone(*args, **settings):
        raise DataError("the VAE is not there")

    monkeypatch.setattr(scale_train, "open_codec", gone)
    with pytest.raises(DataError, match="the VAE is not there"):
        go(SMALL, data, tmp_path / "run", sample_every=3)
    assert not (tmp_path / "run").exists()


def test_wrong_settings_are_refused_before_a_folder_is_made(data, tmp_path):
    out = tmp_path / "run"
    for recipe, words in (
        (SMALL.changed(size=256), "--size 32"),
        (SMALL.changed(batch=32), "larger than the data"),
    ):
        with pytest.raises(ConfigError, match=words):
            go(recipe, data, out)
    with pytest.raises(ConfigError, match="1000 classes and the latents 3"):
        go(SMALL, data, out, start=SiT(4, 2, 4, 64, 2, 2))
    with pytest.raises(ConfigError, match="whole shards"):
        go(SMALL, data, out, micro_batch=3)
    assert not out.exists()


def test_a_run_is_not_written_over_and_not_continued_on_other_latents(
    data, run, pictures, codec, tmp_path
):
    with pytest.raises(ConfigError, match="--resume"):
        go(SMALL, data, run)
    prepare.prepare(images.find(pictures), tmp_path / "L", codec, size=32, rows=5, progress=False)
    with pytest.raises(ResumeMismatchError, match="Give the same latents"):
        go(SMALL, Latents(tmp_path / "L"), run, resume=True)
    with pytest.raises(ResumeMismatchError, match="belongs to another run"):
        go(SMALL.changed(weight=0.1), data, run, resume=True)


def test_a_run_goes_on_with_the_teacher_and_the_start_that_it_had(data, pictures, tmp_path):
    recipe = imagenet(
        "repa", model="SiT-Ti/2", batch=8, shard=2, steps=1, size=32, teacher="vit_tiny_patch16_224"
    )
    start = {seed: SiT(4, 2, 4, 64, 2, 2, num_classes=3) for seed in (0, 1)}
    how = {"images": pictures, "teacher": "random", "resume": "auto"}
    go(recipe, data, tmp_path / "run", start=start[0], **how)
    kept = json.loads((tmp_path / "run" / "config.json").read_text())["data"]
    other = how | {"teacher": another_teacher(tmp_path)}
    with pytest.raises(ResumeMismatchError, match="another teacher"):
        go(recipe.changed(steps=2), data, tmp_path / "run", **other)
    with pytest.raises(ResumeMismatchError, match="another network to start from"):
        go(recipe.changed(steps=2), data, tmp_path / "run", start=start[1], **how)
    go(
        recipe.changed(steps=2), data, tmp_path / "run", checkpointing=True, **how
    )  # it has begun: the start need not be given again
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["data"] == kept
    assert config["segments"][0]["changed"]["how"][1]["checkpointing"]


def test_a_dry_run_says_throughput_memory_and_time(data, tmp_path):
    report = dry_run(SMALL, data, Options(tmp_path / "run"))
    for words in (
        "images/s",
        "ms a step",
        "GiB",
        "6 steps will take",
        "1 ranks x 1 micro-batches x 8 images = 8",
    ):
        assert words in report
    assert not (tmp_path / "run").exists()
    assert "1000 classes" in dry_run(SMALL, None, Options(tmp_path / "run"))
    with pytest.raises(ConfigError, match=r"null condition.*never trained"):
        dry_run(SMALL.changed(label_dropout=0, guidance=2), data, Options(tmp_path / "run"))


def test_a_dry_run_finds_a_full_disk_and_damaged_latents(data, folder, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(scale_dry_run.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(DiskFullError, match="1,000 free"):
        dry_run(SMALL, data, Options(tmp_path / "run"))
    monkeypatch.undo()
    copy = shutil.copytree(folder, tmp_path / "L")
    late = Latents(copy)
    (copy / "shard-00000.npy").write_bytes(b"x")
    with pytest.raises(DataError, match="shard-00000"):
        dry_run(SMALL, late, Options(tmp_path / "run"))


def test_a_missing_gpu_is_one_line(capsys, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert cli.main(["scale", "train", "--device", "cuda", "--latents", str(tmp_path)]) == 2
    assert "--device cpu" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["scale", "train"], 2, "--latents"),
        (["scale", "train", "--latents", "nowhere"], 3, "cfm-lite scale prepare"),
        (["scale", "train", "--method", "vecore", "--dry-run"], 2, "Did you mean 'vecor'"),
        (["scale", "train", "--model", "SiT-XL/3", "--dry-run"], 2, "SiT-XL/2"),
        (
            ["scale", "train", "--set", "mirror=maybe", "--dry-run"],
            2,
            "mirror='maybe': mirror must be of type bool",
        ),
        (["scale", "prepare"], 2, "--out"),
        (["scale", "prepare", "--images", "nowhere", "--out", "x"], 3, "nowhere"),
        (
            [
                "evaluate",
                "--samples",
                "nowhere",
                "--reference",
                "nowhere",
                "--inception",
                "standin",
            ],
            3,
            "cfm-lite sample",
        ),
        (
            [
                "evaluate",
                "--samples",
                "nowhere",
                "--reference",
                "nowhere",
                "--inception",
                "nowhere.pth",
            ],
            4,
            "nowhere.pth",
        ),
    ],
)
def test_each_wrong_command_is_one_line_and_its_exit_code(argv, code, words, capsys):
    assert cli.main(argv) == code
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1


def test_made_data_has_what_a_model_asks_for():
    assert Made((4, 2, 2), 7).num_classes == 7


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_dry_run_speaks_of_the_ranks_that_the_run_will_have(tmp_path, parallel):
    """One process does one rank's part: the split, the hours, the price and the memory are those of
    four.
    """
    options = Options(tmp_path / "run", parallel=parallel)
    report = dry_run(SMALL.changed(steps=3_600_000), None, options, price=2.0, ranks=4)
    assert "4 ranks x 1 micro-batches x 2 images = 8" in report
    assert "for 4 ranks. One rank was measured here." in report
    step = float(re.search(r"([\d.,]+) ms a step", report)[1].replace(",", ""))
    hours = float(re.search(r"([\d.,]+) device-hours", report)[1].replace(",", ""))
    assert hours == pytest.approx(4 * step, rel=0.02)  # 3.6 million steps of as many milliseconds
    costs = float(re.search(r"that costs ([\d,]+\.?\d*)", report)[1].replace(",", ""))
    assert costs == pytest.approx(2 * hours, rel=0.02)
    assert ("one process holds that of all 4 here" in report) == (parallel == "fsdp")


def test_a_dry_run_alone_says_that_it_is_for_one_rank_and_how_to_ask_for_more(tmp_path):
    assert "for 1 rank. For more, give --ranks N" in dry_run(
        SMALL, None, Options(tmp_path / "run"), steps=2
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ranks", "2"], "--dry-run too"),
        (["--dry-run", "--ranks", "0"], "at least 1"),
        (["--dry-run", "--ranks", "3"], "cannot be dealt to 3 ranks"),
    ],
)
def test_ranks_that_a_run_cannot_have_are_one_line(tmp_path, capsys, words, said):
    argv = [
        "scale",
        "train",
        "--model",
        "SiT-Ti/2",
        "--out",
        str(tmp_path / "run"),
        "--batch",
        "8",
        "--set",
        "shard=2",
        "size=32",
    ]
    assert cli.main([*argv, *words]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_dry_run_on_two_ranks_of_another_number_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="was started on 2"):
        dry_run(SMALL, None, Options(tmp_path / "run", world=World(0, 2)), ranks=8)
