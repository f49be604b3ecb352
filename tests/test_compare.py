"""What `cfm-lite compare` can be told: which arms, which recipe fields, and what it refuses; what
large data sets leave out.
"""

import json

import pytest
import torch

from cfm_lite import cli
from cfm_lite import lab as experiments
from cfm_lite.data.datasets import dataset
from cfm_lite.errors import ConfigError
from cfm_lite.evaluate import measures
from cfm_lite.evaluate.judges import judge_for


def compare(tmp_path, *more):
    return cli.main(["compare", "toy", "--quick", "--seeds", "1", "--out", str(tmp_path), *more])


def test_only_the_chosen_arms_are_run_and_the_rest_can_follow(tmp_path):
    assert compare(tmp_path, "--arms", "fm", "fm_scaled") == 0
    assert {row["method"] for row in json.loads((tmp_path / "toy.json").read_text())} == {
        "fm",
        "fm_scaled",
    }
    assert compare(tmp_path, "--arms", "fm", "vecor") == 0
    assert {row["method"] for row in json.loads((tmp_path / "toy.json").read_text())} == {
        "fm",
        "fm_scaled",
        "vecor",
    }


def test_recipe_fields_reach_the_runs_and_the_record(tmp_path):
    assert (
        compare(tmp_path, "--arms", "fm", "--set", "hidden_size=16", "steps=7", "solver=heun") == 0
    )
    rows = json.loads((tmp_path / "toy.json").read_text())
    assert {(row["steps"], row["sampler"]) for row in rows} == {(7, "heun")}
    assert json.loads((tmp_path / "toy.info.json").read_text())["recipe"]["hidden_size"] == 16


def test_the_recipe_on_record_stays_the_core_s_when_an_ablation_follows(tmp_path):
    assert compare(tmp_path, "--arms", "fm") == 0
    core = json.loads((tmp_path / "toy.info.json").read_text())
    assert (
        compare(tmp_path, "--group", "block", "--arms", "dispersive", "--set", "hidden_size=16")
        == 0
    )
    both = json.loads((tmp_path / "toy.info.json").read_text())
    assert both["recipe"] == core["recipe"]
    assert both["groups"]["block"]["recipe"]["hidden_size"] == 16
    assert len(both["sittings"]) == 2


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--arms", "delta"], "Did you mean 'delta_fm'"),
        (["--set", "method=fm"], "--set method cannot be given here"),
        (["--set", "seed=3"], "Use --seed"),
        (["--set", "dataset=moons"], "the suite decides it"),
        (["--set", "hiden_size=3"], "Did you mean 'hidden_size'"),
    ],
)
def test_what_the_suite_decides_cannot_be_set(more, words, tmp_path, capsys):
    assert compare(tmp_path, *more) == 2
    assert words in capsys.readouterr().err


def test_an_arm_of_another_suite_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="arm"):
        experiments.compare("toy", seeds=[0], out=tmp_path, arms=("repa",))


def test_a_large_set_is_compared_in_part_and_without_all_pairs(monkeypatch):
    data, judge = dataset("digits"), judge_for("digits")
    y = experiments.balanced_labels(10, 60)
    whole = experiments.measure(data.x1[:60], y, data, judge)
    monkeypatch.setattr(measures, "COMPARED", 449)
    monkeypatch.setattr(measures, "ALL_PAIRS", 500)
    part = experiments.measure(data.x1[:60], y, data, judge)
    assert set(whole) - set(part) == {"nearest_ratio"}
    cut = data._replace(held_x1=data.held_x1[::2])  # 449 of them
    again = experiments.measure(data.x1[:60], y, cut, judge)
    assert {name: again[name] for name in part} == part
    assert torch.tensor(part["frechet_real"]) != torch.tensor(whole["frechet_real"])


def test_the_report_keeps_guidance_scales_apart(tmp_path, capsys):
    rows = [
        {
            **{"method": method, "seed": seed, "metric": "frechet", "nfe": 50},
            **{"sampler": "euler", "guidance": scale, "miniature": True},
            "value": seed + scale * (method == "delta_fm"),
        }
        for method in ("fm", "delta_fm")
        for seed in (0, 1)
        for scale in (1.5, 2.0)
    ]
    (tmp_path / "mnist_guidance.json").write_text(json.dumps(rows))
    assert cli.main(["compare", "mnist_guidance", "--report", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    for scale in (1.5, 2.0):
        assert f"euler, guidance {scale:g}: frechet at 50" in out
        assert f"+{scale:.4f}" in out
