"""The project's own files agree with each other."""

import re
import tomllib
from pathlib import Path

import pytest

from tools import tables

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CARD = [
    "torch",
    "matplotlib",
    "jupyterlab",
    "numpy",
    "scikit-learn",
    "ipywidgets",
    "timm",
    "seaborn",
]


def floors(requirements: list[str]) -> dict[str, str]:
    found = (re.fullmatch(r"([A-Za-z0-9_-]+)>=([\d.]+)", text) for text in requirements)
    return {match[1]: match[2] for match in found if match}


def test_environment_yml_has_the_eight_packages_with_the_floors_of_pyproject():
    text = (ROOT / "environment.yml").read_text()
    lines = re.findall(r"^  - ([^\s:]+)$", text, re.MULTILINE)
    conda = floors(lines)
    every = floors(
        [
            *PROJECT["dependencies"],
            *(r for extra in PROJECT["optional-dependencies"].values() for r in extra),
        ]
    )
    for name in CARD:
        assert conda["pytorch" if name == "torch" else name] == every[name]
    assert conda["python"] == PROJECT["requires-python"].removeprefix(">=")
    assert "conda-forge" in lines
    assert "- -e ." in text


def test_one_package_has_one_floor_in_every_extra():
    seen: dict[str, str] = {}
    for name, floor in (
        pair
        for extra in PROJECT["optional-dependencies"].values()
        for pair in floors(extra).items()
    ):
        assert seen.setdefault(name, floor) == floor


def test_the_extras_are_the_promised_ones():
    assert set(PROJECT["optional-dependencies"]) == {
        "notebooks",
        "ode",
        "imagenet",
        "eval",
        "test",
        "bench",
        "browser",
        "dev",
    }


def test_the_version_stands_in_one_place_each():
    import cfm_lite

    assert PROJECT["version"] == cfm_lite.__version__
    assert f"version: {cfm_lite.__version__}" in (ROOT / "CITATION.cff").read_text()
    assert f"## {cfm_lite.__version__}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize(
    "target",
    [
        "help",
        "demo",
        "test",
        "lint",
        "bench",
        "bench-gpu",
        "lab",
        "notebooks",
        "html",
        "test-notebooks",
        "test-browser",
        "slides",
        "figures",
        "wheel",
        "clean",
    ],
)
def test_make_lists_its_targets(target):
    assert re.search(rf"^{target}:.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_the_package_says_that_it_is_typed():
    assert (ROOT / "cfm_lite" / "py.typed").exists()


def test_the_tables_of_the_readme_are_those_of_the_results():
    assert tables.readme() == (ROOT / "README.md").read_text(encoding="utf-8"), (
        "run: python -m tools.tables"
    )


def test_every_file_that_the_readme_names_is_there():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / name).exists(), name
