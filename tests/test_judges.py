"""judges.py: judges that are right on rows they have not seen, the same for a seed, and known by
their fingerprint.
"""

import dataclasses
import math
import random

import pytest
import safetensors.torch
import torch

from cfm_lite import metrics
from cfm_lite.data import digits
from cfm_lite.data.datasets import image_rows
from cfm_lite.errors import CheckpointCorruptError, CheckpointError, ConfigError
from cfm_lite.evaluate import judges
from cfm_lite.models import classifier


@pytest.fixture(scope="module")
def judge():
    return judges.train_judge("digits")


@pytest.fixture
def brief(monkeypatch):
    """Judges of one epoch, for what does not depend on how good they are."""
    monkeypatch.setitem(
        judges.SETTINGS, "digits", dataclasses.replace(judges.SETTINGS["digits"], epochs=1)
    )


def test_digits_judge_is_right_on_98_5_percent_of_the_rows_it_has_not_seen(judge):
    x, y = digits.load("judge_test")
    assert judge.accuracy >= 0.985
    assert judge.accuracy == metrics.accuracy(judge(x), y)
    x, y = digits.load("train")  # the generator's half: unseen too
    assert metrics.accuracy(judge(x), y) >= 0.985
    assert metrics.accuracy(judge(x), (y + 1) % 10) < 0.01


def test_logits_are_the_head_of_the_features_whatever_the_chunk(judge):
    x, _ = digits.load("judge_test")
    logits, features = judges.assess(judge, x, chunk=50)
    assert features.shape == (len(x), judges.FEATURES)
    assert logits.shape == (len(x), 10)
    torch.testing.assert_close(logits, judge.head(judge.features(x)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(judge(x), logits, rtol=1e-4, atol=1e-4)
    assert not logits.requires_grad


def test_real_halves_are_near_and_noise_and_single_classes_far(judge):
    x, y = image_rows("digits", "test")
    real = judges.assess(judge, x)[1]
    floor = metrics.frechet(judges.assess(judge, image_rows("digits", "train")[0])[1], real)
    assert 0 < floor < 1
    noise = 2 * torch.rand(900, 1, 8, 8) - 1
    one_class = x[y == 3].repeat(10, 1, 1, 1)
    blurred = torch.stack([x[y == k].mean(0) for k in range(10)]).repeat(90, 1, 1, 1)
    for bad in (noise, one_class, blurred):
        assert metrics.frechet(judges.assess(judge, bad)[1], real) > 10 * floor


def test_real_halves_are_the_generators_and_the_held_out_rows():
    (x, y), (x_other, y_other) = image_rows("digits", "train"), image_rows("digits", "test")
    assert torch.equal(x, digits.load("train")[0])
    assert torch.equal(x_other, digits.load("judge")[0])
    assert abs(len(y) - len(y_other)) <= 1


def test_a_seed_is_a_judge_and_the_global_random_state_stays(brief):
    state = torch.get_rng_state()
    one, same, other = (judges.train_judge(seed=seed) for seed in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    assert one.fingerprint == same.fingerprint
    assert one.accuracy == same.accuracy
    assert one.fingerprint != other.fingerprint
    assert not any(p.requires_grad for p in one.parameters())
    assert not one.training


def test_the_number_of_threads_does_not_change_the_judge_and_is_given_back(brief):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = judges.train_judge(limit=128).fingerprint
        torch.set_num_threads(2)
        assert judges.train_judge(limit=128).fingerprint == one
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_fingerprint_changes_with_one_weight_and_with_the_accuracy(brief):
    judge = judges.train_judge(limit=100)
    before = judge.fingerprint
    judge.accuracy += 1e-9
    changed = judge.fingerprint
    judge.head.bias[0] += 1e-6
    assert len({before, changed, judge.fingerprint}) == 3
    assert len(before) == 64


def test_limit_uses_the_first_rows_alone(brief, monkeypatch):
    seen = []
    monkeypatch.setattr(
        classifier, "fit_classifier", lambda judge, x, y, *rest: seen.append((x, y))
    )
    judges.train_judge(limit=30)
    x, y = digits.load("judge_fit")
    assert torch.equal(seen[0][0], x[:30])
    assert torch.equal(seen[0][1], y[:30])


@pytest.mark.parametrize("limit", [1, 5, 70])
def test_sets_smaller_than_a_batch_train_too(brief, limit):
    assert 0 <= judges.train_judge(limit=limit).accuracy <= 1


def test_shifts_are_translations_filled_with_background(generator):
    x = digits.load("train")[0][:200]
    moved = classifier._shifted(x, 1, generator)
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1), value=-1.0)
    all_moves = torch.stack(
        [padded[:, :, i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
    )  # (9, 200, 1, 8, 8)
    hits = (all_moves == moved).flatten(2).all(2)
    assert hits.any(0).all()
    assert hits.any(1).all()  # every one of the nine moves occurs
    assert torch.equal(classifier._shifted(x, 0, generator), x)


# on disk


def test_a_saved_judge_comes_back_whole(judge, tmp_path):
    path = tmp_path / "deep" / "judge.safetensors"
    judges.save_judge(judge, path)
    state = torch.get_rng_state()
    again = judges.load_judge(path)
    assert torch.equal(state, torch.get_rng_state())
    assert again.fingerprint == judge.fingerprint
    assert (again.accuracy, again.seed, again.dataset) == (judge.accuracy, 0, "digits")
    x = digits.load("judge_test")[0]
    assert torch.equal(again(x), judge(x))
    assert not any(p.requires_grad for p in again.parameters())
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_no_flipped_bit_or_truncation_passes_for_a_judge(judge, tmp_path):
    path = tmp_path / "judge.safetensors"
    judges.save_judge(judge, path)
    right, draw = path.read_bytes(), random.Random(0)
    header = 8 + int.from_bytes(right[:8], "little")
    places = [draw.randrange(8 * header) for _ in range(60)] + [
        draw.randrange(8 * header, 8 * len(right)) for _ in range(20)
    ]
    for place in places:
        wrong = bytearray(right)
        wrong[place // 8] ^= 1 << (place % 8)
        path.write_bytes(bytes(wrong))
        with pytest.raises(CheckpointCorruptError, match=r"judge\.safetensors"):
            judges.load_judge(path)
    for length in (0, 5, header - 1, header, len(right) - 1):
        path.write_bytes(right[:length])
        with pytest.raises(CheckpointCorruptError):
            judges.load_judge(path)


def test_what_is_no_judge_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="there is no judge"):
        judges.load_judge(tmp_path / "none.safetensors")
    other = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(2)}, other)
    with pytest.raises(CheckpointCorruptError, match="not a judge"):
        judges.load_judge(other)


@pytest.fixture
def kept(brief, tmp_path, monkeypatch):
    """An empty cache and nothing shipped; returns the folder where its judges are kept."""
    monkeypatch.setattr(judges, "SHIPPED", tmp_path / "nothing")
    monkeypatch.setattr(judges, "cache_root", lambda: tmp_path)
    return tmp_path / "judges"


def test_judge_for_trains_once_and_then_reads(kept, monkeypatch, capsys):
    first = judges.judge_for("digits")
    assert capsys.readouterr().err == "cfm-lite: note: training the judge of digits, once.\n"
    assert len(list(kept.iterdir())) == 1
    monkeypatch.setattr(judges, "train_judge", lambda *_: pytest.fail("trained again"))
    assert judges.judge_for("digits").fingerprint == first.fingerprint
    assert not capsys.readouterr().err


def test_judge_for_trains_anew_for_other_settings_and_for_a_damaged_file(kept, monkeypatch):
    first = judges.judge_for("digits")
    (path,) = kept.iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="trained again"):
        assert judges.judge_for("digits").fingerprint == first.fingerprint
    monkeypatch.setitem(
        judges.SETTINGS, "digits", dataclasses.replace(judges.SETTINGS["digits"], noise=0.2)
    )
    assert judges.judge_for("digits").fingerprint != first.fingerprint
    assert len(list(kept.iterdir())) == 2


def test_the_shipped_judge_is_what_its_recorded_command_makes(judge):
    shipped = judges.judge_for("digits")
    assert judges.SHIPPED / judges.judge_file("digits") in judges.SHIPPED.iterdir()
    assert shipped.accuracy >= 0.985
    x = digits.load("judge_test")[0]
    agree = (  # `judge` is trained as the command trains it
        (judges.assess(shipped, x)[0].argmax(1) == judges.assess(judge, x)[0].argmax(1))
        .float()
        .mean()
    )
    assert agree >= 0.98  # another processor rounds in another way


def test_judge_for_works_where_nothing_can_be_kept(kept):
    kept.write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="cannot be kept"):
        assert judges.judge_for("digits").dataset == "digits"


# wrong arguments


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: judges.train_judge("digit"), "Did you mean 'digits'"),
        (lambda: judges.train_judge(limit=0), "limit is 0"),
        (lambda: judges.train_judge(seed=-1), "seed is -1"),
        (lambda: judges.train_judge(seed=1.5), "seed is 1.5"),
        (lambda: judges.Judge("cifar"), "must be one of 'digits', 'mnist'"),
        (lambda: image_rows("toy", "test"), "must be one of"),
        (lambda: judges.judge_for("cifar"), "must be one of"),
        (lambda: judges.Judge("digits")(torch.zeros(2, 1, 28, 28)), r"takes \(B, 1, 8, 8\)"),
        (lambda: judges.Judge("mnist")(torch.zeros(2, 784)), r"takes \(B, 1, 28, 28\)"),
        (
            lambda: judges.Judge("digits")(torch.zeros(2, 1, 8, 8, dtype=torch.long)),
            "floating dtype",
        ),
        (
            lambda: judges.assess(judges.Judge("digits"), torch.zeros(2, 1, 8, 8), chunk=0),
            "chunk is 0",
        ),
    ],
)
def test_wrong_arguments_are_config_errors_that_say_what_was_seen(call, words):
    with pytest.raises(ConfigError, match=words):
        call()


def test_an_untrained_judge_has_no_accuracy_and_takes_batches_of_one_and_half_precision():
    judge = judges.Judge("mnist")
    assert math.isnan(judge.accuracy)
    assert judge(torch.zeros(1, 1, 28, 28)).shape == (1, 10)
    assert judge(torch.zeros(1, 1, 28, 28, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.real_data
def test_mnist_judge_learns_from_a_tenth_of_the_rows():
    judge = judges.train_judge("mnist", limit=6000)
    assert judge.accuracy > 0.94
