"""What a training step costs is measured for every arm that is trained, in turn."""

import json

import pytest

from cfm_lite import cli
from cfm_lite.errors import ConfigError
from cfm_lite.lab import ARMS, SUITES
from tools import costs

TINY = {"hidden_size": 16, "batch": 16, "shard": 16}


def test_every_trained_arm_of_the_core_has_a_row_beside_fm():
    rows = costs.training_costs(
        "digits", rounds=4, changes=TINY | {"steps": 2}
    )  # a short training has steps enough
    trained = [name for name in SUITES["digits"].arms if not ARMS[name].changes]
    assert [row["method"] for row in rows] == trained
    assert rows[0]["relative"] == rows[0]["low"] == rows[0]["high"] == 1
    for row in rows:
        assert row["value"] > 0
        assert row["low"] <= row["relative"] <= row["high"]
        assert (row["batch"], row["hidden_size"], row["dataset"], row["rounds"]) == (
            16,
            16,
            "digits",
            4,
        )


def test_a_step_that_takes_three_times_as_long_costs_three_times_as_much(monkeypatch):
    """A plain step takes 1, one of `dispersive` 3, and the machine gets slower and slower."""
    slow, order = [1.0], []

    def stepper(recipe, data, device, steps):
        def step():
            order.append(recipe)
            slow[0] += len(order) % 50 == 0  # now and then
            return slow[0] * (3.0 if recipe.method == "dispersive" else 1.0)

        return step

    monkeypatch.setattr(costs, "_stepper", stepper)
    rows = {row["method"]: row for row in costs.training_costs("toy", rounds=41, changes=TINY)}
    assert rows["dispersive"]["relative"] == pytest.approx(3)
    assert rows["delta_fm"]["relative"] == pytest.approx(1)
    timed = order[costs.WARM * len(rows) :]
    assert len(set(timed[:: len(rows)])) == len(rows)  # another one begins each round


SHORT = ["toy", "--rounds", "3", "--device", "cpu"]


def test_the_command_writes_the_rows_and_shows_them(tmp_path, capsys):
    costs.main([*SHORT, "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "toy.costs.json").read_text())
    shown = capsys.readouterr().out
    assert all(f"\n{row['method']} " in shown for row in rows)
    assert len(rows) == 6  # FM, ΔFM, VeCoR twice, dispersive, and the pair
    assert "toy.costs.json" in shown


def test_costs_of_other_settings_are_not_written_over(tmp_path, capsys):
    words = [*SHORT, "--out", str(tmp_path), "--set"]
    costs.main([*words, "hidden_size=16"])
    before = (tmp_path / "toy.costs.json").read_bytes()
    with pytest.raises(SystemExit):
        costs.main([*words, "hidden_size=8"])
    assert "hidden_size differ" in capsys.readouterr().err
    assert (tmp_path / "toy.costs.json").read_bytes() == before
    costs.main([*words, "hidden_size=16"])


def test_the_old_option_says_what_took_its_place_and_writes_nothing(tmp_path, capsys):
    assert cli.main(["compare", "toy", "--costs", "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "python -m tools.costs" in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_place_that_is_none_is_refused_before_anything_is_timed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(costs, "training_costs", lambda *_, **how: pytest.fail("it times"))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        costs.main([*SHORT, "--out", "~/file"])
    assert str(tmp_path / "file") in capsys.readouterr().err


@pytest.mark.parametrize(
    ("suite", "how", "words"),
    [
        ("toys", {}, "suite is 'toys'"),
        ("toy", {"rounds": 1}, "rounds is 1"),
        ("toy", {"changes": {"widht": 3}}, "widht"),
    ],
)
def test_what_cannot_be_timed_is_a_clear_error(suite, how, words):
    with pytest.raises(ConfigError, match=words):
        costs.training_costs(suite, **how)
