"""The project's own files agree with each other."""

import re
import tomllib
from pathlib import Path

import pytest

from cfm_lite.lab.arms import CONTROLS
from tests.documents import documents
from tools import tables
from tools.report.results import Place, Results, said_of

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
        "text",
        "test",
        "bench",
        "site",
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
        "site",
        "clean",
    ],
)
def test_make_lists_its_targets(target):
    assert re.search(rf"^{target}:.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_the_package_says_that_it_is_typed():
    assert (ROOT / "cfm_lite" / "py.typed").exists()


@pytest.mark.parametrize("document", tables.DOCUMENTS)
def test_the_tables_of_a_document_are_those_of_the_results(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    assert all(f"<!-- {name} -->" in text for name in tables.DOCUMENTS[document])
    assert tables.filled(document) == text, "run: python -m tools.tables"


@pytest.mark.parametrize("document", documents())
def test_every_file_that_a_document_names_is_there(document):
    path = ROOT / document
    text = path.read_text(encoding="utf-8")
    names = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text) + re.findall(
        r"(?:href|src)=\"([^\":]+)\"", text
    )
    for name in names:
        assert (path.parent / name).exists(), name


def test_the_readme_is_short_enough_to_be_read():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert len(text.split()) <= 1800
    assert max(map(len, text.splitlines())) <= 120


SOURCES = {path: path.read_text(encoding="utf-8") for path in (ROOT / "cfm_lite").rglob("*.py")}


def test_a_line_of_the_package_has_at_most_100_characters():
    wide = {
        f"{path.relative_to(ROOT)}:{number}": len(line)
        for path, text in SOURCES.items()
        for number, line in enumerate(text.splitlines(), 1)
        if len(line) > 100
    }
    assert not wide


def test_the_loop_of_training_is_short_enough_to_be_read():
    assert len(SOURCES[ROOT / "cfm_lite" / "training.py"].splitlines()) <= 200


def test_few_files_know_a_method_by_its_name():
    # methods.py, presets of papers, the suites and prose; the others ask the table
    naming = sorted(str(p.relative_to(ROOT)) for p, text in SOURCES.items() if "delta_fm" in text)
    assert len(naming) <= 8, naming


def test_what_the_readme_says_that_the_lab_found_is_what_the_rows_say():
    results = Results(ROOT / "data" / "results")

    def found(suite, method, base="fm"):
        nfe = results.nfes(suite)[-1]
        against = {} if base == "fm" else {"base": Place(base, nfe=nfe)}
        return said_of(results.difference(suite, Place(method, nfe=nfe), **against))

    gain, loss, none = "gains", "loses", "no clear difference"
    assert {found("digits", name) for name in ("vecor", "vecor_latent")} == {gain}
    assert found("digits", "delta_fm") == none
    assert {found("mnist_sit", name) for name in ("delta_fm", "vecor", "vecor_latent")} == {gain}
    assert {found("mnist_short", name) for name in ("delta_fm", "vecor_latent")} == {gain}
    assert f"On MNIST ({len(results.known('mnist_short', 'core', 'seed'))} seeds" in (
        ROOT / "README.md"
    ).read_text(encoding="utf-8")
    assert {found("cifar10", name) for name in ("delta_fm", "vecor", "vecor_latent")} == {none}
    for suite in ("digits", "mnist_short", "mnist_sit", "cifar10"):
        for method, control in CONTROLS.items():
            if (suite, method) != ("mnist_short", "vecor"):  # which was not trained there
                assert found(suite, method, control) == none
                assert found(suite, f"{method}_debiased") == none
    for suite in ("digits", "mnist_sit"):
        assert found(suite, "pair") == gain
        most = {name: mean(results, suite, name) for name in results.methods(suite)}
        assert min(most, key=most.get) == "pair"
    assert {found(suite, "dispersive") for suite in ("digits", "mnist_short", "cifar10")} == {loss}
    assert {found("mnist_short", "fm_scaled", name) for name in ("delta_fm", "vecor_latent")} == {
        gain
    }


def mean(results, suite, method):
    return results.mean(suite, Place(method, nfe=results.nfes(suite)[-1]), "frechet")
