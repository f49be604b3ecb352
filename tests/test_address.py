"""Public addresses stand in one place, and without them no link is shown; the workflow for a public
code host asks for what is there.
"""

import json
import re
import tomllib

import pytest

from tools import address

GITHUB = {"Repository": "https://github.com/owner/name"}
NOTEBOOKS = sorted(address.NOTEBOOKS.glob("[0-9]*.ipynb"))
WORKFLOW = (address.ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
LINK = "https://colab.research.google.com/github/owner/name/blob/main/notebooks/a.ipynb"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_committed_notebooks_are_as_the_addresses_ask(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert address.addressed(path.name, notebook, address.urls()) == notebook


def test_with_an_address_a_notebook_links_to_colab_and_installs_the_library_there():
    plain = json.loads(NOTEBOOKS[0].read_text(encoding="utf-8"))
    linked = address.addressed("a.ipynb", plain, GITHUB)
    first, second, *rest = linked["cells"]
    assert [first, *rest] == plain["cells"]
    text = "".join(second["source"])
    assert f"({LINK})" in text
    assert "git+https://github.com/owner/name" in text
    nbformat = pytest.importorskip("nbformat")
    nbformat.validate(nbformat.from_dict(linked))
    assert address.addressed("a.ipynb", linked, GITHUB) == linked
    assert address.addressed("a.ipynb", linked, {}) == plain


@pytest.mark.parametrize("url", ["", "https://gitlab.com/owner/name", "https://github.com/owner"])
def test_colab_is_offered_for_a_repository_on_github_alone(url):
    assert address.colab("a.ipynb", GITHUB) == LINK
    assert address.colab("a.ipynb", {"Repository": url}) == ""


def test_the_workflow_tests_three_systems_and_four_pythons_and_asks_for_what_is_there():
    assert re.search(r"os: \[ubuntu-latest, windows-latest, macos-latest\]", WORKFLOW)
    assert re.search(r'python: \["3.11", "3.12", "3.13", "3.14"\]', WORKFLOW)
    project = tomllib.loads((address.ROOT / "pyproject.toml").read_text(encoding="utf-8"))[
        "project"
    ]
    assert project["requires-python"] == ">=3.11"
    assert set(re.findall(r'-e "\.\[(\w+)\]"', WORKFLOW)) <= set(project["optional-dependencies"])
    targets = re.findall(r"run: make ([\w-]+)", WORKFLOW)
    assert {"lint", "lint-js", "wheel", "site"} == set(targets)
    makefile = (address.ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
