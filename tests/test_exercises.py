"""The exercises as a reader works through them: a stub fails, the solution and another right answer
pass, and everything after an exercise runs whichever of them stands there, or none.
"""

import functools
import os
import re
from pathlib import Path

import pytest

from cfm_lite import course
from tests import slices
from tests.answers import ANSWERS
from tests.documents import notebook

FOLDER = Path(__file__).parent.parent / "notebooks"
PATHS = sorted(FOLDER.glob("[0-9]*.ipynb"))
CHECK = re.compile(r"^course\.check\(\"([\d.]+)\", (.+)\);$", re.MULTILINE)
every_exercise = pytest.mark.parametrize("number", course.exercises())


@functools.cache
def code(name: str) -> tuple[tuple[str, str], ...]:
    """(kind, source) of every cell with code; the kind is exercise, solution or nothing."""
    found = []
    for cell in notebook(FOLDER / name).cells:
        if cell.cell_type == "code":
            tags = cell.metadata.get("tags", [])
            kind = next((tag for tag in tags if tag in ("exercise", "solution")), "")
            found.append((kind, cell.source))
    return tuple(found)


def place_of(number: str) -> tuple[str, int, str]:
    """The notebook of an exercise, the place of its cell, and what is handed to the check."""
    path = next(path for path in PATHS if int(path.name[:2]) == int(number.split(".")[0]))
    for place, (kind, source) in enumerate(code(path.name)):
        if found := [given for mine, given in CHECK.findall(source) if mine == number]:
            assert kind == "exercise"
            return path.name, place, found[0]
    raise AssertionError(f"no cell of {path.name} checks exercise {number}")


def judged(number: str, answer: str) -> bool:
    """Whether `answer`, the code of a solution, passes; run with what it needs and no more."""
    name, place, given = place_of(number)
    cells = [source for kind, source in code(name)[:place] if kind != "solution"] + [answer]
    space = slices.run(cells, slices.needed(cells, [len(cells) - 1]))
    return course.check(number, eval(given, space))  # noqa: S307


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Fast mode: no check asks how long a notebook trains."""
    monkeypatch.setattr(course, "FAST", True)


@every_exercise
def test_each_exercise_has_one_check_below_its_stub_and_its_solution_comes_next(number):
    name, place, _ = place_of(number)
    sources = [source for _, source in code(name)]
    assert sum(source.count(f'course.check("{number}"') for source in sources) == 1
    assert "..." in sources[place]
    assert code(name)[place + 1][0] == "solution"


@every_exercise
def test_the_solution_passes_its_check(number, capsys):
    name, place, _ = place_of(number)
    assert judged(number, code(name)[place + 1][1]), capsys.readouterr().out


@every_exercise
def test_another_right_answer_passes_too(number, capsys):
    name, place, _ = place_of(number)
    assert ANSWERS[number].strip() != code(name)[place + 1][1].strip()
    assert judged(number, ANSWERS[number]), capsys.readouterr().out


CYCLE = "(torch.randperm(39, generator=generator)[:1] + 1 + torch.arange(40)) % 40"
MAKE = "    g = torch.Generator().manual_seed(seed)\n"


@pytest.mark.parametrize(
    ("number", "changes", "hint"),
    [
        ("2.3", {"        model.zero_grad()\n": ""}, "zero_grad"),
        (
            "2.3",
            {MAKE: "", "for k in range(steps):\n": f"for k in range(steps):\n    {MAKE}"},
            "same times",
        ),
        (
            "4.3",
            {
                "len(x1) - 1, (": "len(x1), (",
                "    other = other + (other >= torch.arange(len(x1)))\n": "",
            },
            "some rows are their own",
        ),
        (
            "4.3",
            {
                "torch.randint(len(x1) - 1, (len(x1),), generator=generator)": CYCLE,
                "    other = other + (other >= torch.arange(len(x1)))\n": "",
            },
            "one and the same distance",
        ),
        ("4.3", {"(len(x1),), generator=generator)": "(len(x1),))"}, "two calls"),
        ("8.1", {"(a.T)": "(a.T, correction=0)", "(b.T)": "(b.T, correction=0)"}, "N − 1"),
    ],
)
def test_a_usual_mistake_is_named(number, changes, hint, capsys):
    answer = ANSWERS[number]
    for old, new in changes.items():
        assert answer.count(old) == 1
        answer = answer.replace(old, new)
    assert not judged(number, answer)
    assert hint in capsys.readouterr().out


def after_exercises(name: str, answers: bool) -> list[str]:
    """The cells with each solution left out or, with `answers`, replaced by another one."""
    cells, number = [], ""
    for kind, source in code(name):
        number = next((mine for mine, _ in CHECK.findall(source)), number)
        other = ANSWERS[number] if answers and kind == "solution" else ""
        cells.append(other if kind == "solution" else source)
    return cells


@pytest.mark.parametrize("number", ["6.1", "9.4"])
@pytest.mark.parametrize("kind", [str, lambda text: str(text).encode()])
def test_the_digits_of_a_number_as_text_are_not_the_number(number, kind, capsys):
    assert not course.check(number, kind("98304"))
    assert "that is text, not a number" in capsys.readouterr().out


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_no_later_cell_needs_a_name_that_only_a_solution_gives(path):
    solutions = [source for kind, source in code(path.name) if kind == "solution"]
    others = [source for kind, source in code(path.name) if kind != "solution"]
    only = set().union(*map(slices.bound, solutions)) - set().union(*map(slices.bound, others))
    for source in others:
        assert not slices.free(source) & only, source


@pytest.mark.skipif(
    "CFM_LITE_NOTEBOOKS" not in os.environ, reason="make test-notebooks runs these cells"
)
@pytest.mark.parametrize("answers", [False, True], ids=["left out", "another answer"])
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_what_follows_an_exercise_runs_without_its_solution(path, answers, monkeypatch):
    """Only the cells that use an exercise's names are run, and what they need."""
    monkeypatch.chdir(FOLDER)
    cells = after_exercises(path.name, answers)
    mine: set[str] = set()
    followers = []
    for place, (kind, source) in enumerate(code(path.name)):
        if kind == "exercise":
            mine |= slices.bound(source)
        elif kind == "" and slices.used(source) & mine:
            followers.append(place)
        elif kind == "":
            mine -= slices.bound(source)
    slices.run(cells, slices.needed(cells, followers))
