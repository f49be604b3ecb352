"""The tool that compares two trees, on this tree and its own last commit, with two steps a run."""

import subprocess
import sys

import pytest

from tools import golden


def test_two_trees_are_compared_case_by_case():
    """HEAD against the working tree: equal, or this test says which bits a change would move."""
    command = [sys.executable, "-m", "tools.golden", "--against", "HEAD", "--steps", "2"]
    done = subprocess.run(
        [*command, "--only", "toy/"], cwd=golden.ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].endswith("identical: weights, optimizer, average, log, samples")
    assert lines[-1] == "0 of 8 cases differ"


@pytest.mark.parametrize("part", ["weights", "log"])
def test_a_part_that_differs_is_named_and_the_exit_code_is_1(part, capsys):
    old = {"toy/fm": {"weights": "a", "log": "b"}}
    new = {"toy/fm": {**old["toy/fm"], part: "c"}}
    assert golden.report(old, old) == 0
    assert golden.report(old, new) == 1
    assert f"DIFFERS: {part}" in capsys.readouterr().out


def test_a_case_that_one_tree_lacks_is_a_difference():
    case = {"toy/fm": {"weights": "a"}}
    assert golden.report(case, {}) == golden.report({}, case) == 1
