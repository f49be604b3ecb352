"""What each setting of the recipe of MNIST buys: trainings that differ in one setting each."""

import json

import pytest
import torch

from tools import knobs


@pytest.mark.parametrize("knob", knobs.KNOBS)
def test_a_setting_is_the_only_difference_and_as_many_images_are_seen(knob):
    base, mine = knobs.chosen(knobs.AS_IT_IS, 2000), knobs.chosen(knob, 2000)
    changed = {name for name, value in mine.as_dict().items() if base.as_dict()[name] != value}
    assert changed - {"steps"} == set(knobs.KNOBS[knob])
    assert mine.steps * mine.batch == base.steps * base.batch


@pytest.mark.real_data
def test_every_setting_is_trained_measured_and_told(tmp_path, monkeypatch):
    torch.set_num_threads(1)
    few = {name: knobs.KNOBS[name] for name in (knobs.AS_IT_IS, "24 channels")}
    small = {"hidden_size": 8, "shard": 16}
    monkeypatch.setattr(knobs, "KNOBS", {name: small | own for name, own in few.items()})
    monkeypatch.setattr(knobs, "SAMPLES", 20)
    monkeypatch.setattr(knobs, "ROOT", tmp_path)
    monkeypatch.setattr(knobs, "ROWS", tmp_path / "knobs.json")
    knobs.main(["--steps", "2"])
    rows = json.loads((tmp_path / "knobs.json").read_text())
    assert list(dict.fromkeys(row["knob"] for row in rows)) == [
        knobs.AS_IT_IS,
        knobs.NO_AVERAGE,
        "24 channels",
    ]
    values = {row["knob"]: row["value"] for row in rows if row["metric"] == "frechet"}
    assert values[knobs.AS_IT_IS] != values[knobs.NO_AVERAGE]
    assert "| 24 channels |" in knobs.table()
    assert "2 steps of 32 images" in knobs.table()
