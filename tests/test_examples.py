"""The examples in the docstrings of the ideas give what they show."""

import doctest
import importlib

import pytest

IDEAS = ("draws", "guidance", "losses", "metrics", "negatives", "paths", "perturbations", "samplers", "theory")  # fmt: skip


@pytest.mark.parametrize("idea", IDEAS)
def test_every_example_gives_what_it_shows(idea):
    module = importlib.import_module(f"cfm_lite.{idea}")
    assert doctest.testmod(module).failed == 0
    if idea == "losses":
        finder = doctest.DocTestFinder(exclude_empty=False)
        shown = {test.name.split(".")[-1] for test in finder.find(module) if test.examples}
        assert shown == set(module.__all__)
