"""Benchmarks: each one runs as it stands. What they measure is for a quiet machine."""

import numpy as np
import pytest

from tools.benchmarks import record, trees


@pytest.mark.parametrize("name", trees.CASES)
def test_a_case_of_two_trees_runs_in_this_one(name):
    make, calls = trees.CASES[name]
    call = make()
    call()
    assert calls > 0
    assert call() is not None


def test_an_interval_holds_the_median_and_shrinks_with_more_rounds():
    rng = np.random.default_rng(1)
    few, many = (trees.interval(1 + 0.1 * rng.standard_normal(n)) for n in (10, 1000))
    assert few[0] < 1 < few[1]
    assert many[1] - many[0] < (few[1] - few[0]) / 3


def test_a_process_answers_for_each_block_and_its_end_is_no_time():
    with trees.Worker(trees.HERE) as worker:
        block = worker.block("negatives of another class, 4,096")
        block()
        block()
        with pytest.raises(RuntimeError, match="a case of another tree"):
            worker.block("a case of another tree")()
    assert worker.process.returncode == 1


@pytest.mark.parametrize("where", [["--out", "/somewhere/else"], ["--out=/somewhere/else"], []])
def test_a_record_names_the_command_and_not_the_folder_of_its_machine(monkeypatch, where):
    monkeypatch.setattr("sys.argv", ["benchmarks", "toy", *where, "--quick"])
    assert record.facts()["command"] == "python -m tools.benchmarks toy --quick"
