"""The course's own tools: a check never raises and never lies, fast mode is read in one place,
results come from files.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cfm_lite import course
from cfm_lite.errors import ConfigError, DataError

PACKAGE = Path(course.__file__).parent.parent


@pytest.fixture
def registered(monkeypatch):
    """A made exercise, 99.1: the answer must be 2."""
    course.exercises()  # all are registered before a copy is made
    checks = dict(course._CHECKS)
    monkeypatch.setattr(course, "_CHECKS", checks)

    @course.exercise("99.1")
    def judge(answer):
        return None if answer() == 2 else "think of one plus one."

    return "99.1"


def test_a_right_answer_passes(registered, capsys):
    assert course.check(registered, lambda: 2) is True
    assert capsys.readouterr().out == "✓ Exercise 99.1: correct.\n"


def test_a_wrong_answer_gets_the_hint(registered, capsys):
    assert course.check(registered, lambda: 3) is False
    assert capsys.readouterr().out == "✗ Exercise 99.1: think of one plus one.\n"


@pytest.mark.parametrize("answer", [None, ...])
def test_a_stub_is_not_an_answer(registered, answer, capsys):
    assert course.check(registered, answer) is False
    assert "not answered yet" in capsys.readouterr().out


def test_what_an_answer_raises_becomes_a_hint(registered, capsys):
    def fails():
        raise ZeroDivisionError("division by zero")

    assert course.check(registered, fails) is False
    assert "ZeroDivisionError: division by zero" in capsys.readouterr().out
    assert course.check(registered, lambda: None + 1) is False
    assert "still holds a `...`" in capsys.readouterr().out
    assert course.check(registered, 7) is False  # 7 cannot be called


def test_an_unknown_exercise_is_named(capsys):
    assert course.check("4.9999", 1) is False
    assert "must be one of" in capsys.readouterr().out


def test_two_checks_of_one_exercise_are_refused(registered):
    with pytest.raises(ConfigError, match="two checks"):
        course.exercise(registered)(lambda answer: None)


def test_every_notebook_has_at_least_three_exercises_in_order():
    numbers = course.exercises()
    for notebook in range(11):
        mine = [
            int(number.split(".")[1]) for number in numbers if number.split(".")[0] == str(notebook)
        ]
        assert mine == list(range(1, len(mine) + 1))
        assert len(mine) >= 3, notebook


@pytest.mark.parametrize(
    "answer",
    [
        0.0,
        "text",
        [],
        torch.zeros(3),
        lambda *a, **k: torch.zeros(()),
        lambda *a, **k: None,
        object(),
    ],
)
def test_no_check_takes_nonsense_for_an_answer_and_none_raises(answer, capsys):
    for number in course.exercises():
        assert course.check(number, answer) is False, number
        assert len(capsys.readouterr().out.splitlines()) >= 1


def test_a_check_leaves_the_global_random_state_alone():
    for number in course.exercises():
        before = torch.get_rng_state()
        course.check(number, lambda *a, **k: torch.zeros(()))
        assert torch.equal(torch.get_rng_state(), before), number


def test_fast_mode_is_read_in_one_place():
    words = {
        path: ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for path in PACKAGE.rglob("*.py")
    }
    readers = [
        path
        for path, nodes in words.items()
        if any(isinstance(n, ast.Constant) and n.value == "CFM_LITE_FAST" for n in nodes)
    ]
    assert [path.parent.name for path in readers] == ["course"]


def test_the_switch():
    code = """
import os, sys
for value in ("1", "true", "0", "", "no"):
    os.environ["CFM_LITE_FAST"] = value
    for name in [name for name in sys.modules if name.startswith("cfm_lite.course")]:
        del sys.modules[name]
    sys.modules.pop("cfm_lite").__dict__.pop("course", None) if "cfm_lite" in sys.modules else None
    from cfm_lite import course
    print(course.FAST, course.pick("full", "fast"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    on, off = "True fast", "False full"
    assert done.stdout.splitlines() == [on, on, off, off, off]


def test_say_fills_numbers_into_prose():
    assert course.say("from {a:.2f} to {b:.3f}", a=1.0, b=2.5).data == "from 1.00 to 2.500"


def test_say_fills_numbers_in_their_order_too():
    assert course.say("{:.1f} then {:.0%}", 1.25, torch.tensor(0.5)).data == "1.2 then 50%"


def test_a_table_formats_numbers_by_column_and_leaves_text_alone():
    rows = [("FM", 0.123, torch.tensor(0.5)), ("ΔFM", "not measured", 1)]
    lines = course.table("method | distance | share", rows, "", ".2f", ".0%").data.splitlines()
    assert lines[:2] == ["| method | distance | share |", "|---|---|---|"]
    assert lines[2:] == ["| FM | 0.12 | 50% |", "| ΔFM | not measured | 100% |"]
    with pytest.raises(ValueError):
        course.table("a | b", [(1, 2, 3)], "", "")


def test_a_later_cell_gets_the_learners_answer_where_it_is_right_else_ours(registered, capsys):
    right, ours = lambda: 2, lambda: 1 + 1
    with pytest.raises(ConfigError, match="keeps no answer"):
        course.solved(registered, ...)
    course._OURS[registered] = ours
    try:
        assert course.solved(registered, right) is right
        assert capsys.readouterr().out == ""
        assert course.solved(registered, ...) is ours
        assert "still open" in capsys.readouterr().out
    finally:
        del course._OURS[registered]


def test_the_courses_own_answers_pass_their_checks(capsys):
    course.exercises()
    for number, ours in course._OURS.items():
        assert course.check(number, ours) is True, number


def test_results_are_rows_and_missing_ones_are_named():
    rows = course.results("figure3")
    assert {"method", "metric", "value"} <= set(rows[0])
    with pytest.raises(DataError, match="no_such_suite"):
        course.results("no_such_suite")


def test_a_stored_figure_is_shown_as_it_is_and_a_missing_one_is_named():
    drawn = course.picture("pictures")
    assert drawn.format == "png"
    assert drawn.data == (course.checkout() / "data" / "results" / "pictures.png").read_bytes()
    with pytest.raises(DataError, match=r"no_such_figure\.png cannot be read"):
        course.picture("no_such_figure")


def test_without_a_checkout_the_course_says_so(monkeypatch):
    monkeypatch.setattr(course, "checkout", lambda: None)
    with pytest.raises(DataError, match="checkout"):
        course.results("figure3")
    with pytest.raises(DataError, match=r"figure3\.png is part of the repository"):
        course.picture("figure3")


def test_the_verdict_of_exercise_8_5_needs_both_intervals(capsys):
    def by_the_bootstrap(d, lower_is_better):
        if not (d.low > 0 or d.high < 0):
            return "no clear difference"
        return "better" if (d.mean < 0) == lower_is_better else "worse"

    assert course.check("8.5", by_the_bootstrap) is False
    assert "Student's contains it" in capsys.readouterr().out

    def right(d, lower):
        return (
            "no clear difference" if not d.clear else "better" if (d.mean < 0) == lower else "worse"
        )

    assert course.check("8.5", right) is True
