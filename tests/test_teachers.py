"""REPA's small teacher: good at its data, frozen, and not the judge."""

import dataclasses

import pytest
import torch

from cfm_lite.data import digits, teachers, words
from cfm_lite.data.captions import KINDS
from cfm_lite.errors import ConfigError
from cfm_lite.evaluate.judges import judge_for


@pytest.fixture(scope="module")
def teacher():
    return teachers.teacher_for("digits")  # trained now, or by another test and kept


def test_it_classifies_rows_that_it_has_not_seen(teacher):
    assert teacher.accuracy > 0.95
    assert not any(p.requires_grad for p in teacher.parameters())


def test_it_is_another_network_than_the_judge(teacher):
    assert {tuple(p.shape) for p in teacher.parameters()} != {
        tuple(p.shape) for p in judge_for("digits").parameters()
    }


def test_the_same_seed_gives_the_same_teacher_and_the_global_state_is_left(monkeypatch):
    brief = dataclasses.replace(teachers.SETTINGS["digits"], epochs=2)
    monkeypatch.setitem(teachers.SETTINGS, "digits", brief)
    state = torch.get_rng_state()
    one, same, other = (teachers.train_teacher("digits", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters()))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters()))


def test_tokens_are_the_map_averaged_to_the_grid(teacher):
    x = digits.load("judge")[0][:5]
    tokens = teachers.Tokens(teacher, 4)(x)
    assert tokens.shape == (5, 16, teachers.Tokens.dim)
    torch.testing.assert_close(
        teachers.Tokens(teacher, 1)(x)[:, 0], tokens.mean(1), rtol=1e-4, atol=1e-5
    )


def test_the_teacher_of_words_learns_the_kind_of_one_thing_and_sees_the_pictures():
    """Not their standardised form, which is what the network of words learns from."""
    x, kinds = teachers._rows("words", "train", limit=60)
    shown = words.load("train", 60)
    alone = [row for row, scene in enumerate(shown.scenes) if len(scene.things) == 1]
    assert torch.equal(x, shown.x1[alone])
    assert [KINDS[kind] for kind in kinds] == [shown.scenes[row].things[0].kind for row in alone]
    teacher = teachers.SmallTeacher("words")
    assert teacher(x).shape == (len(x), len(KINDS))
    seen = teachers.Tokens(teacher, 8)(words.Standard().encode(x))
    assert seen.shape == (len(x), 64, teachers.Tokens.dim)
    torch.testing.assert_close(seen.unflatten(1, (8, 8)).permute(0, 3, 1, 2), teacher.features(x))


def test_a_cached_teacher_is_the_same_and_a_damaged_one_is_made_anew(
    teacher, tmp_path, monkeypatch
):
    monkeypatch.setattr(teachers, "cache_root", lambda: tmp_path)
    monkeypatch.setattr(teachers, "train_teacher", lambda dataset: teacher)
    teachers.teacher_for.cache_clear()
    teachers.teacher_for("digits")
    (path,) = (tmp_path / "teachers").glob("*.safetensors")
    state = torch.get_rng_state()
    again = teachers._read(path, "digits")
    assert torch.equal(
        state, torch.get_rng_state()
    )  # whether it was cached must not change a user's run
    assert again is not None
    assert again.accuracy == teacher.accuracy
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))
    teachers.teacher_for.cache_clear()
    with pytest.warns(UserWarning, match="trained again"):
        teachers.teacher_for("digits")
    teachers.teacher_for.cache_clear()


def test_data_without_a_teacher_are_named():
    with pytest.raises(ConfigError, match="dataset"):
        teachers.train_teacher("moons")
