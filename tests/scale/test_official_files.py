"""Official files at the command line: fine-tuned, sampled, and written from our runs."""

import numpy as np
import pytest
import safetensors.torch
import torch

from cfm_lite import cli
from cfm_lite.data.latents.codec import open_codec
from cfm_lite.models import SiT, export_official, load_official
from cfm_lite.runs.imagenet import MODELS

TINY = MODELS["SiT-Ti/2"]


@pytest.fixture
def network():
    torch.manual_seed(0)
    model = SiT(input_size=4, num_classes=3, learn_sigma=True, **TINY)
    torch.nn.init.normal_(model.final_layer.linear.weight, std=0.02)
    return model


def test_an_official_file_is_fine_tuned_and_written_back(network, folder, tmp_path, capsys):
    torch.save({"ema": export_official(network, format="sit")}, tmp_path / "sit.pt")
    words = [
        "scale",
        "train",
        "--model",
        "SiT-Ti/2",
        "--method",
        "vecor",
        "--latents",
        str(folder),
        "--out",
        str(tmp_path / "R"),
    ]
    words += ["--steps", "2", "--batch", "8", "--log-every", "1", "--set", "shard=2", "lr=0.0001"]
    assert cli.main([*words, "--start", str(tmp_path / "sit.pt")]) == 0
    assert (
        cli.main(
            [
                "export",
                "--checkpoint",
                str(tmp_path / "R"),
                "--format",
                "repa",
                "--out",
                str(tmp_path / "repa.pt"),
            ]
        )
        == 0
    )
    content = torch.load(tmp_path / "repa.pt", weights_only=True)["ema"]
    back = load_official(content, format="repa", num_heads=2)
    x, t, y = torch.randn(2, 4, 4, 4), torch.tensor([0.2, 0.7]), torch.tensor([0, 2])
    torch.testing.assert_close(
        back(x, t, y), network(x, t, y), rtol=0, atol=0.02
    )  # two small steps away
    assert not torch.equal(back(x, t, y), network(x, t, y))
    again = [
        "scale",
        "train",
        "--model",
        "SiT-Ti/2",
        "--latents",
        str(folder),
        "--out",
        str(tmp_path / "R2"),
        "--steps",
        "1",
    ]
    again += ["--batch", "8", "--set", "shard=2", "--start", str(tmp_path / "R")]
    assert cli.main(again) == 0  # a run of ours
    capsys.readouterr()
    assert cli.main([*words, "--start", str(tmp_path / "none.pt")]) == 4
    assert "none.pt" in capsys.readouterr().err


@pytest.mark.parametrize("format", ["sit", "repa"])
def test_official_files_are_sampled_alike_whatever_their_convention(
    network, format, tmp_path, monkeypatch, capsys
):
    plain = SiT(input_size=4, num_classes=3, **TINY)
    plain.load_state_dict(
        load_official(
            export_official(network, format="repa"), format="repa", num_heads=2
        ).state_dict()
    )
    monkeypatch.setattr("cfm_lite.runs.run.VAE", "tiny")
    safetensors.torch.save_file(
        export_official(plain, format=format), tmp_path / "file.safetensors"
    )
    words = [
        "scale",
        "sample",
        "--checkpoint",
        str(tmp_path / "file.safetensors"),
        "--format",
        format,
        "--model",
        "SiT-Ti/2",
        "--steps",
        "3",
    ]
    assert cli.main([*words, "--num", "5", "--out", str(tmp_path / "S")]) == 0
    with np.load(tmp_path / "S" / "samples.npz") as file:
        images, labels = file["arr_0"], file["arr_1"]
    assert images.shape == (5, 32, 32, 3)
    assert labels.tolist() == [0, 1, 2, 0, 1]
    # a file in another precision is the same network
    double = {name: x.double() for name, x in export_official(plain, format="sit").items()}
    safetensors.torch.save_file(double, tmp_path / "same.safetensors")
    same = [
        "scale",
        "sample",
        "--checkpoint",
        str(tmp_path / "same.safetensors"),
        "--model",
        "SiT-Ti/2",
        "--steps",
        "3",
        "--num",
        "5",
    ]
    assert cli.main([*same, "--out", str(tmp_path / "T")]) == 0
    with np.load(tmp_path / "T" / "samples.npz") as file:
        assert np.abs(file["arr_0"].astype(int) - images).max() <= 1
    assert open_codec("tiny").channels == 4
    capsys.readouterr()
    assert (
        cli.main([*words[:-4], "--num", "5", "--out", str(tmp_path / "U")]) == 2
    )  # a SiT-XL/2 is something else
