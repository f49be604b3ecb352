"""What every committed notebook keeps: outputs, no error, no local path, small, exercises that can
be failed and solved.

`make test-notebooks` points CFM_LITE_NOTEBOOKS at copies that were just executed in fast mode, so
the same tests hold them too.
"""

import ast
import base64
import functools
import json
import os
import re
from pathlib import Path

import pytest

from cfm_lite import course
from tests.documents import notebook as read

ROOT = Path(__file__).parent.parent
FOLDER = Path(os.environ.get("CFM_LITE_NOTEBOOKS", ROOT / "notebooks"))
PATHS = sorted(FOLDER.glob("[0-9]*.ipynb"))
NAMES = [
    "00_tour",
    "01_paths",
    "02_flow_matching",
    "03_trajectory_drift",
    "04_contrastive_flow_matching",
    "05_vecor",
    "06_dispersive",
    "07_sampling_and_guidance",
    "08_images",
    "09_sit",
    "10_imagenet_full_scale",
    "11_pictures_from_words",
]
every_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def cells(path: Path, kind: str) -> list:
    return [cell for cell in read(path).cells if cell.cell_type == kind]


def source(path: Path, kind: str) -> str:
    return "\n".join(cell.source for cell in cells(path, kind))


def code_of(cell) -> ast.Module:
    """The cell's Python, without lines that belong to IPython."""
    return ast.parse(
        "\n".join(
            "pass" if line.lstrip().startswith(("%", "!")) else line
            for line in cell.source.splitlines()
        )
    )


def text_outputs(cell) -> str:
    parts = []
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        parts.append(
            output.get("text", "")
            + data.get("text/plain", "")
            + data.get("text/markdown", "")
            + data.get("text/html", "")
        )
    return "\n".join(parts)


def tags(cell) -> list[str]:
    return cell.metadata.get("tags", [])


def test_the_course_is_complete():
    assert [path.stem for path in PATHS] == NAMES


@every_notebook
def test_every_cell_ran_in_order_and_none_failed(path):
    code = [cell for cell in cells(path, "code") if cell.source.strip()]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
    assert sum(bool(cell.outputs) for cell in code) >= len(code) / 3


@every_notebook
def test_no_noise_is_kept(path):
    notebook = read(path)
    nbformat = pytest.importorskip("nbformat")
    text = path.read_text(encoding="utf-8")
    nbformat.validate(json.loads(text))
    found = re.search(
        r"(?<![\w.:/])/(home|root|tmp|work|Users|usr|opt)/[\w.-]+",
        re.sub(r'"image/png": "[^"]*"', "", text),
    )
    assert not found, f"a local path: {found[0]}"
    if "CFM_LITE_NOTEBOOKS" not in os.environ:  # what `make notebooks` takes out
        assert path.stat().st_size <= 1_000_000
        assert all(name.startswith("widget-") for name in widget_states(notebook))
    stderr = [
        output.text
        for cell in cells(path, "code")
        for output in cell.outputs
        if output.get("name") == "stderr"
    ]
    assert not [text for text in stderr if "Warning" in text]


def widget_states(notebook) -> dict:
    saved = notebook.metadata.get("widgets", {}).get("application/vnd.jupyter.widget-state+json")
    return saved["state"] if saved else {}


@every_notebook
def test_an_explorer_is_saved_with_all_it_needs_and_with_a_picture(path):
    notebook = read(path)
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    calls = re.findall(r"\bwidgets\.(\w+)\(", code)
    states = {name: entry["state"] for name, entry in widget_states(notebook).items()}
    shown = [
        output.data
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "application/vnd.jupyter.widget-view+json" in output.get("data", {})
    ]
    found = [states[data["application/vnd.jupyter.widget-view+json"]["model_id"]] for data in shown]
    assert [state["_face"] for state in found] == calls
    assert all("image/png" in data for data in shown)
    for state in found:
        for value in state.values():
            if str(value).startswith("IPY_MODEL_"):
                assert value.removeprefix("IPY_MODEL_") in states
    engines = [state for state in states.values() if "var cfmLite=" in state.get("content", "")]
    assert len(engines) == bool(calls)


@every_notebook
def test_a_notebook_becomes_a_script_that_python_can_read(path):
    exporter = pytest.importorskip("nbconvert.exporters").ScriptExporter()
    text, resources = exporter.from_filename(str(path))
    assert resources["output_extension"] == ".py"
    ast.parse(text)
    assert read(path).metadata.kernelspec.name == "python3"


@every_notebook
def test_pictures_are_real_pictures(path):
    for cell in cells(path, "code"):
        for output in cell.outputs:
            # films too: an export and the site show no other kind
            assert {kind for kind in output.get("data", {}) if kind.startswith("image/")} <= {
                "image/png"
            }
            png = output.get("data", {}).get("image/png")
            if png:
                assert base64.b64decode(png)[:8] == b"\x89PNG\r\n\x1a\n"
    shown = sum(
        "image/png" in output.get("data", {})
        for cell in cells(path, "code")
        for output in cell.outputs
    )
    assert shown >= 3


@every_notebook
def test_every_stub_was_checked_and_failed_with_a_hint(path):
    """The other way, that solutions pass, is in test_exercises.py."""
    seen = []
    for cell in cells(path, "code"):
        for exercise in re.findall(r"course\.check\(\"([\d.]+)\"", cell.source):
            assert "exercise" in tags(cell)
            assert cell.source.endswith(";")  # no bare True or False below the hint
            found = re.findall(
                rf"^([✓✗]) Exercise {re.escape(exercise)}: .+", text_outputs(cell), re.M
            )
            assert found == ["✗"], exercise
            assert not [out for out in cell.outputs if out.output_type == "execute_result"]
            seen.append(exercise)
    assert len(seen) >= 3
    assert seen == [e for e in course.exercises() if e.split(".")[0] == str(int(path.stem[:2]))]


@every_notebook
def test_solutions_are_folded_and_stubs_are_short(path):
    for cell in cells(path, "code"):
        if "solution" in tags(cell):
            assert cell.metadata.jupyter.source_hidden is True
        if "exercise" in tags(cell):
            assert "..." in cell.source


@every_notebook
def test_no_text_outside_the_fold_speaks_of_the_solution(path):
    assert not re.search(r"^Solution\b", source(path, "markdown"), re.MULTILINE)


def test_each_part_has_a_task_to_build():
    parts = ("00 01 02", "04 05", "06 09", "03 07", "08 10")  # as the slides' decks have them
    built = [
        path.stem[:2]
        for path in PATHS
        for cell in cells(path, "code")
        if {"solution", "build"} <= set(tags(cell)) and len(lines_of(cell.source)) >= 8
    ]
    assert all(set(part.split()) & set(built) for part in parts)
    assert {"02", "03", "04", "05", "07", "08", "09", "10"} <= set(built)


@every_notebook
def test_every_picture_is_followed_by_what_one_sees(path):
    """Right below, or below one more cell with a number; explorers say what to try instead."""
    notebook = read(path).cells
    for place, cell in enumerate(notebook):
        kinds = {kind for out in cell.get("outputs", []) for kind in out.get("data", {})}
        if "image/png" in kinds and "widgets." not in cell.source:
            below = [c.source for c in notebook[place + 1 : place + 4] if c.cell_type == "markdown"]
            assert "What you see" in "".join(below[:1]), cell.source[:80]


@every_notebook
def test_a_notebook_has_at_most_60_cells(path):
    """What a student reads: the cell for Colab, which tools/address.py writes, does not count."""
    written = [cell for cell in read(path).cells if "colab" not in tags(cell)]
    assert len(written) <= 60


def lines_of(text: str) -> list[str]:
    """The lines that a reader has to follow: no blank ones, no comments, no imports."""
    text = re.sub(
        r"^from [\w.]+ import \([^)]*\)\n?|^(?:from [\w.]+ )?import .*\n?",
        "",
        text,
        flags=re.MULTILINE,
    )
    return [line for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]


@every_notebook
def test_cells_are_short_and_what_is_derived_is_held_against_the_library(path):
    code = cells(path, "code")
    for cell in code:
        limit = 40 if "build" in tags(cell) else 15  # a task to build is 10 to 40 lines long
        assert len(lines_of(cell.source)) <= limit, cell.source
        if (
            "viz." in cell.source
            and not {"exercise", "solution"} & set(tags(cell))
            and "import" not in cell.source
        ):
            assert len(lines_of(cell.source)) <= 10, cell.source
    assert sum("assert_close" in cell.source for cell in code) >= 3
    assert "pyplot" not in source(path, "code")


@every_notebook
def test_a_hint_is_drawn_as_markdown(path):
    """Without an empty line after its summary a fold is raw HTML, and `code` keeps its marks."""
    for cell in cells(path, "markdown"):
        folds = re.findall(r"<details><summary>Hint</summary>(..)", cell.source, re.DOTALL)
        assert set(folds) <= {"\n\n"}, cell.source


@functools.cache
def public_names() -> set[str]:
    found = set()
    for path in (ROOT / "cfm_lite").rglob("*.py"):
        if path.name.startswith("nb"):  # checks of exercises: nothing that a notebook could repeat
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                found.add(node.name)
    return found


@every_notebook
def test_no_notebook_defines_what_the_library_has(path):
    trees = [code_of(cell) for cell in cells(path, "code")]
    defined = {
        node.name
        for tree in trees
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    assert not defined & public_names()


@every_notebook
def test_the_parts_that_every_notebook_has(path):
    text = source(path, "markdown")
    assert re.match(r"# \d\d · ", cells(path, "markdown")[0].source)
    for part in ("**Goal", "**Time", "**Hardware", "## Recap", "## References"):
        assert part in text, part
    assert "Next" in text


CITED = re.compile(r"et al|arXiv|paper|official|\bTable\b|Wang and He|[A-Z]\w+ (?:19|20)\d\d")


NO_MEASUREMENT = re.compile(  # settings that stand as code, addresses, exercise numbers, versions
    r"`[^`]*`|^    .*|https?://\S+|arXiv:\d+\.\d+|\b\d{4}\.\d{5}\b|[Ee]xercises? "
    r"\d+\.\d+|\b\d+\.\d+\.\d+\b"
)


@every_notebook
def test_measured_numbers_in_text_come_from_the_run(path):
    """A decimal number in prose stands in the code, in an output, or in a line that names its
    source; a setting stands as `code`.
    """
    computed = source(path, "code") + "\n".join(text_outputs(cell) for cell in cells(path, "code"))
    computed = computed.replace("−", "-")
    for cell in cells(path, "markdown"):
        for line in cell.source.splitlines():
            plain = NO_MEASUREMENT.sub("", line)
            for number in re.findall(r"(?<![\w.])\d+\.\d+(?![\w.]*\d)", plain):
                assert number in computed or CITED.search(line) or line.startswith("#"), (
                    f"{number} in: {line[:160]}"
                )


def test_links_between_notebooks_lead_somewhere():
    for path in PATHS:
        for target in re.findall(r"\]\(([^)#:\s]+)\)", source(path, "markdown")):
            assert (ROOT / "notebooks" / target).exists(), f"{path.name}: {target}"


def test_times_are_kept_for_every_notebook_and_within_the_goal():
    rows = {
        row["notebook"]: row["seconds"]
        for row in json.loads((ROOT / "data" / "results" / "notebooks.json").read_text())
    }
    assert list(rows) == NAMES
    assert sum(rows.values()) <= 480


SYMBOLS = "../docs/notation.md"
CLASHES = {
    r"\\tilde u|\\hat u|ũ": "a negative is $u_-$",
    r"u\s*\+\s*w\s*\\?,?\s*(\\[bB]igl?)?\(c\s*-\s*u\)": "guidance mixes $v_y$ and $v_\\varnothing$",
    r"c_t\b|dx=\(v\+c": "the noise of an SDE is $\\eta$",
    r"\ba=\\partial_t|acceleration \$a\$|\|a\|": "the acceleration is $\\ddot x$",
    r"\bm\s*=\s*\\mathbb\s*E\[u": "the mean of targets is $v$",
    r"\\mathcal\s*N\(m\b": "the mean of data is $\\mu$",
    r"\blaws?\b(?! of cosines)": "a distribution, not a law",
    r"\bmade good\b|\bbut for\b|\bfor nothing\b": "plain words",
}


@pytest.mark.parametrize("clash", CLASHES)
def test_a_symbol_means_one_thing_in_notebooks_slides_and_documents(clash):
    texts = {path.name: source(path, "markdown") + source(path, "code") for path in PATHS}
    for path in (*(ROOT / "slides").glob("*.md"), *(ROOT / "docs").rglob("*.md")):
        texts[path.name] = path.read_text("utf-8")
    for name, text in texts.items():
        found = re.search(clash, text)
        assert not found, (
            f"{name}: {CLASHES[clash]}: {found and text[found.start() - 60 : found.end() + 60]}"
        )


@every_notebook
def test_every_notebook_leads_to_the_table_of_symbols(path):
    assert SYMBOLS in cells(path, "markdown")[0].source
    assert (ROOT / "notebooks" / SYMBOLS).resolve().exists()
