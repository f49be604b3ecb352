"""Every notebook with an explorer, as a student uses it: run all cells, drag, play, use the
keyboard, reopen without a kernel.

Screenshots go to CFM_LITE_SHOTS (default: build/browser), to be looked at.
"""

import io
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

nbformat = pytest.importorskip("nbformat")
pytest.importorskip(
    "playwright", reason="not run: needs Chromium and Playwright, make test-browser"
)

from tests.browser import lab as labs  # noqa: E402
from tests.browser.drag import PICTURE, drag  # noqa: E402

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]

SHOTS = Path(os.environ.get("CFM_LITE_SHOTS", labs.ROOT / "build" / "browser"))
CALL = re.compile(
    r"widgets\.(exact_field|trajectories|divergence|wrong_velocities|guidance|features)\("
)


def explorers_of(path: Path) -> list[str]:
    cells = nbformat.read(path, as_version=4).cells
    return [
        name for cell in cells if cell.cell_type == "code" for name in CALL.findall(cell.source)
    ]


NOTEBOOKS = {
    path.stem: explorers_of(path) for path in sorted((labs.ROOT / "notebooks").glob("[0-9]*.ipynb"))
}
NOTEBOOKS = {name: found for name, found in NOTEBOOKS.items() if found}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A copy of the notebooks, so that saving one changes no committed file."""
    copy = tmp_path_factory.mktemp("course")
    for name in NOTEBOOKS:
        shutil.copyfile(labs.ROOT / "notebooks" / f"{name}.ipynb", copy / f"{name}.ipynb")
    SHOTS.mkdir(parents=True, exist_ok=True)
    return copy


@pytest.fixture(scope="module")
def lab(folder):
    with labs.running_lab(folder) as running:
        yield running


@pytest.fixture(scope="module")
def chromium():
    with labs.browser() as opened:
        yield opened


@pytest.fixture
def page(chromium):
    context = chromium.new_context(viewport={"width": 1440, "height": 1000})
    opened = context.new_page()
    opened.failures = []
    opened.on("pageerror", lambda error: opened.failures.append(str(error)))
    yield opened
    context.close()


def test_every_kind_of_explorer_stands_in_some_notebook():
    assert {name for found in NOTEBOOKS.values() for name in found} == {
        "exact_field", "trajectories", "divergence", "wrong_velocities", "guidance", "features",
    }  # fmt: skip


def source_of(page, index: int) -> str:
    return page.locator(PICTURE).nth(index).get_attribute("src")


def cell_of(page, index: int):
    return (
        page.locator(PICTURE)
        .nth(index)
        .locator("xpath=ancestor::*[contains(@class,'jp-OutputArea')][1]")
    )


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_a_student_can_run_drag_play_and_type(notebook, page, lab):
    labs.open_notebook(page, lab, f"{notebook}.ipynb")
    labs.run_all(page)
    pictures, wanted = page.locator(PICTURE), len(NOTEBOOKS[notebook])
    page.wait_for_function(
        f"() => document.querySelectorAll('{PICTURE}').length === {wanted}", timeout=60_000
    )
    assert (
        page.locator(
            ".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr']", has_text="Error"
        ).count()
        == 0
    )
    for index, name in enumerate(NOTEBOOKS[notebook]):
        pictures.nth(index).scroll_into_view_if_needed()
        handle = cell_of(page, index).locator(".noUi-handle").first
        before = source_of(page, index)
        seen = drag(page, handle, index=index, positions=30, seconds=1.5, shots=3)
        assert source_of(page, index) != before, name
        assert seen.updates >= 2, name
        assert len(seen.heights) == 1, f"{name}: the page jumps between {seen.heights}"
        assert all(
            np.asarray(Image.open(io.BytesIO(shot)).convert("L")).std() > 10 for shot in seen.shots
        ), f"{name}: a blank picture"
        before = source_of(page, index)
        handle.focus()
        page.keyboard.press("ArrowLeft")  # the handle is at its right end
        page.wait_for_timeout(700)
        assert source_of(page, index) != before, f"{name}: the keyboard does nothing"
        before = source_of(page, index)
        cell_of(page, index).locator(".widget-play button").first.click()
        page.wait_for_timeout(1500)
        assert source_of(page, index) != before, f"{name}: play does nothing"
        cell_of(page, index).locator(".widget-play button").first.click()  # pause
        page.wait_for_timeout(300)
        cell_of(page, index).screenshot(path=SHOTS / f"{notebook}-{name}.png")
    assert not page.failures


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_reopened_without_a_kernel_it_shows_a_picture(notebook, chromium, lab, folder):
    """The notebook as a student's own save leaves it, with the live widget in its outputs."""
    from nbclient import NotebookClient

    saved = nbformat.read(folder / f"{notebook}.ipynb", as_version=4)
    code = [cell for cell in saved.cells if cell.cell_type == "code"]
    first = next(i for i, cell in enumerate(code) if CALL.search(cell.source))
    kept = [cell for cell in code[:first] if "import" in cell.source] + [code[first]]
    short = nbformat.v4.new_notebook(cells=kept, metadata=saved.metadata)
    NotebookClient(short, timeout=120, store_widget_state=False).execute()
    assert any(
        "application/vnd.jupyter.widget-view+json" in output.get("data", {})
        for output in short.cells[-1].outputs
    )
    nbformat.write(short, folder / f"reopened_{notebook}.ipynb")
    context = chromium.new_context(viewport={"width": 1440, "height": 1000})
    page = context.new_page()
    labs.open_notebook(page, lab, f"reopened_{notebook}.ipynb")
    page.wait_for_selector(".jp-OutputArea img", timeout=20_000)
    shown = page.evaluate(
        "() => [...document.querySelectorAll('.jp-OutputArea img')].filter(p => p.naturalWidth > "
        "300).length"
    )
    page.screenshot(path=SHOTS / f"{notebook}-reopened.png")
    context.close()
    assert shown >= 1


def test_an_html_export_shows_the_pictures(folder, chromium):
    """`jupyter nbconvert --to html` of a notebook with live widgets, opened without any network."""
    import subprocess
    import sys

    source = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell("from cfm_lite import widgets\nwidgets.exact_field()")]
    )
    from nbclient import NotebookClient

    NotebookClient(source, timeout=120).execute()
    nbformat.write(source, folder / "export.ipynb")
    command = [sys.executable, "-m", "nbconvert", "--to", "html", str(folder / "export.ipynb")]
    configured = os.environ | {
        "JUPYTER_CONFIG_PATH": str(labs.ROOT / "notebooks")
    }  # as make html and make lab set it
    subprocess.run(command, check=True, capture_output=True, env=configured)
    context = chromium.new_context(offline=True, viewport={"width": 1440, "height": 1000})
    page = context.new_page()
    page.goto((folder / "export.html").as_uri())
    page.wait_for_timeout(1500)
    shown = page.evaluate(
        "() => [...document.querySelectorAll('img')].filter(p => p.naturalWidth > 300).length"
    )
    page.screenshot(path=SHOTS / "export.png")
    context.close()
    assert shown == 1
