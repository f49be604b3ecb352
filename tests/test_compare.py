"""What `cfm-lite compare` can be told: which arms, which recipe fields, and what it refuses; what
large data sets leave out.
"""

import json
import re

import pytest
import torch

from cfm_lite import cli
from cfm_lite import lab as experiments
from cfm_lite.cli.compare import listing
from cfm_lite.data.datasets import dataset
from cfm_lite.errors import ConfigError, DataError
from cfm_lite.evaluate import measures
from cfm_lite.evaluate.judges import judge_for
from tools.costs import costs_of, path_of
from tools.report.pages import write_report

pytestmark = pytest.mark.usefixtures("few_evaluations")


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


def test_what_a_report_needs_is_said_where_the_core_or_fm_was_not_run(tmp_path, capsys):
    few = ("--set", "steps=2")
    assert compare(tmp_path, "--group", "k", *few) == 0
    out = capsys.readouterr().out
    assert str(tmp_path / "toy.k.json") in out
    assert "Run it with --group core" in out
    assert compare(tmp_path, "--arms", "delta_fm", *few) == 0
    out = capsys.readouterr().out
    assert str(tmp_path / "toy.json") in out
    assert "fm was not run. Run it, too: --arms fm." in out
    assert compare(tmp_path, "--arms", "fm", *few) == 0
    out = capsys.readouterr().out
    assert "no differences" not in out
    assert "  delta_fm" in out


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


def row_of(**changes):
    row = {"method": "fm", "seed": 0, "metric": "mmd", "nfe": 4, "value": 1.0}
    row |= {"sampler": "euler", "guidance": 1.0, "miniature": True}
    return {name: value for name, value in (row | changes).items() if value is not ...}


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (5, "is 5"),
        ([], r"is \[\]"),
        (row_of(nfe=None), "has nfe None"),
        (row_of(sampler=...), "has no sampler"),
        (row_of(value="x"), "has value 'x'"),
        (row_of(key=[]), r"has key \[\]"),
        (row_of(variant=None), "has variant None"),
        (row_of(value=float("nan")), "has value nan"),
        (row_of(metric="diverged", value=None), "has no reason"),
    ],
)
@pytest.mark.parametrize("more", [["toy", "--report"], ["toy", "--list"]])
def test_an_edited_row_is_named_with_its_file_and_place(more, bad, words, tmp_path, capsys):
    path = tmp_path / "toy.json"
    path.write_text(json.dumps([row_of(), bad]))
    assert cli.main(["compare", *more, "--out", str(tmp_path)]) == 3
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(rf"{re.escape(str(path))}, row 2, {words}; each must be .*remove", said)
    path.unlink()  # the remedy, which leads to the usual words
    assert cli.main(["compare", *more, "--out", str(tmp_path)]) == (0 if "--list" in more else 3)


def test_a_report_without_a_suite_says_what_took_its_place_and_writes_nothing(tmp_path, capsys):
    assert cli.main(["compare", "--report", "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "cfm-lite compare digits --report" in said
    assert "python -m tools.report" in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["[]", "{}", '"x"', "[[]]"])
def test_a_file_without_rows_is_refused_in_one_line(text, tmp_path, capsys):
    (tmp_path / "toy.json").write_text(text)
    assert cli.main(["compare", "toy", "--report", "--out", str(tmp_path)]) == 3
    said = capsys.readouterr().err
    assert "toy.json" in said or "holds no rows" in said
    assert len(said.strip().splitlines()) == 1
    with pytest.raises(DataError, match=r"toy\.json|holds no rows"):
        write_report(tmp_path)


def test_edited_costs_and_facts_are_refused(tmp_path):
    store = experiments.Store(tmp_path, "toy")
    path_of(tmp_path, "toy").write_text(json.dumps([{"method": "fm"}]))
    with pytest.raises(DataError, match=r"toy\.costs\.json, row 1, has no batch"):
        costs_of(tmp_path, "toy")
    store.info_path.write_text("[]")
    with pytest.raises(DataError, match=r"toy\.info\.json holds \[\]; it must be a mapping"):
        store.info()


def test_a_list_names_each_arm_once_and_tells_hours(tmp_path, monkeypatch):
    todo = experiments.plan("toy", out=tmp_path, seeds=[0], quick=True)
    lines = listing(todo, 1).splitlines()[:-1]
    names = [line.split(" s  ")[1] for line in lines]
    assert len(set(names)) == len(names)
    assert "pair_dispersive seed 0" in names
    for seconds, told in ((99 * 60, "about 99 min with"), (100 * 60, "about 1.7 h with")):
        monkeypatch.setattr(type(todo), "seconds", lambda plan, s=seconds: [s, *[0] * 20])
        assert told in listing(todo, 1)
