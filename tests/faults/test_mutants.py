"""The seeded mistakes of mutants.py still fit the package; `make test-mutants` runs them."""

import ast

from tests.faults.mutants import MUTANTS, ROOT, rotten


def test_every_mutant_still_changes_one_place():
    assert rotten() == []


def test_there_are_enough_of_them_with_names_and_tests_of_their_own():
    assert len(MUTANTS) >= 24
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert all(mutant.old != mutant.new for mutant in MUTANTS)
    for word in {
        word for mutant in MUTANTS for word in mutant.tests.split() if word.startswith("tests/")
    }:
        assert (ROOT / word).is_file(), word


def test_every_mutant_is_still_a_program():
    for mutant in MUTANTS:
        whole = (ROOT / "cfm_lite" / mutant.file).read_text(encoding="utf-8")
        ast.parse(whole.replace(mutant.old, mutant.new), mutant.file)
