"""The cards of the shipped networks: their numbers belong to the weights that ship."""

import json

from cfm_lite import pretrained
from tools import cards


def test_a_row_is_what_the_weights_give():
    row = cards.rows()["toy_fm"]
    again = cards.measured("toy_fm")
    assert again["fingerprint"] == row["fingerprint"]
    assert again["accuracy"] == row["accuracy"]
    assert abs(again["sliced_wasserstein"] - row["sliced_wasserstein"]) < 0.01


def test_numbers_of_other_weights_are_not_shown(tmp_path, monkeypatch):
    kept = json.loads(cards.ROWS.read_text(encoding="utf-8"))
    kept[0]["fingerprint"] = "older"
    monkeypatch.setattr(cards, "ROWS", tmp_path / "models.json")
    cards.ROWS.write_text(json.dumps(kept), encoding="utf-8")
    assert kept[0]["network"] not in cards.rows()
    assert f"| `{kept[0]['network']}` | not measured |" in cards.reached_table()


def test_every_shipped_network_has_its_two_lines():
    for table in (cards.networks_table(), cards.reached_table()):
        assert all(f"| `{name}` |" in table for name in pretrained.RECIPES)


def test_the_file_holds_rows_of_shipped_networks_alone():
    kept = json.loads(cards.ROWS.read_text(encoding="utf-8"))
    assert {row["network"] for row in kept} <= set(pretrained.RECIPES)
