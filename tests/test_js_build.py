"""The built file of the explorers is that of its sources, small, ours alone, and asks nothing of a
network; its colours are those of the figures.
"""

import re

from tests.documents import notebook
from tools import explorers

BUILT = explorers.BUILT.read_text(encoding="utf-8")


def test_the_built_file_is_that_of_its_sources():
    assert BUILT.splitlines()[0] == explorers.banner(), "run: make widgets"


def test_the_saved_notebooks_hold_the_built_file():
    for path in sorted((explorers.ROOT / "notebooks").glob("[0-9]*.ipynb")):
        assert not explorers.renew(notebook(path)), f"{path.name}: make widgets"


def test_the_colours_are_those_of_the_figures_and_methods():
    written = explorers.COLOURS.read_text(encoding="utf-8")
    assert written == explorers.written(explorers.colours()), "run: make widgets"


def test_the_built_file_is_small_and_reaches_for_nothing():
    assert len(BUILT.encode()) <= explorers.LARGEST
    assert not re.search(r"https?://|\bfetch\(|XMLHttpRequest|WebSocket|\bimport\(", BUILT)
    assert not re.search(r"\beval\(|innerHTML|outerHTML|insertAdjacentHTML|document\.write", BUILT)


def test_nothing_of_others_stands_among_the_sources():
    for path in explorers.SOURCE.rglob("*.js"):
        for name in re.findall(r'from "([^"]+)"', path.read_text(encoding="utf-8")):
            assert name.startswith("."), f"{path.name} takes {name}"


def test_every_line_that_differs_in_meaning_has_its_own_colour():
    for side in ("light", "dark"):
        found = explorers.colours()[side]
        shown = [found[name] for name in ("noise", "data", "attract", "repel", "model", "truth")]
        assert len(set(shown)) == len(shown)
