"""Every notebook with an explorer, as a student uses it: run all cells, drag, play, use the
keyboard, reopen without a kernel.

Screenshots go to CFM_LITE_SHOTS (default: build/browser), to be looked at.
"""

import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip(
    "playwright", reason="not run: needs Chromium and Playwright, make test-browser"
)
nbformat = pytest.importorskip("nbformat")

from tests.browser import lab as labs  # noqa: E402
from tests.browser.drag import EXPLORER, drag  # noqa: E402
from tools import explorers  # noqa: E402

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


def pixels(page, index: int) -> str:
    return page.locator(f"{EXPLORER} canvas").nth(index).evaluate("canvas => canvas.toDataURL()")


def changed(page, index: int, before: str) -> bool:
    """Whether the picture becomes another one within three seconds."""
    for _ in range(15):
        page.wait_for_timeout(200)
        if pixels(page, index) != before:
            return True
    return False


def at_the_left_end(page, index: int) -> str:
    """The picture where a drag begins: some sliders start at the right end, where it ends."""
    page.locator(EXPLORER).nth(index).locator("input[type=range]").first.focus()
    page.keyboard.press("Home")
    page.wait_for_timeout(300)
    return pixels(page, index)


def use(page, index: int, name: str) -> None:
    """Drag, type and play as a student would; each shows another picture, and the page never jumps."""
    explorer = page.locator(EXPLORER).nth(index)
    explorer.scroll_into_view_if_needed()
    before = at_the_left_end(page, index)
    seen = drag(page, index=index, positions=30, seconds=1.5, shots=3)
    assert pixels(page, index) != before, name
    assert seen.updates >= 2, name
    assert len(seen.heights) == 1, f"{name}: the page jumps between {seen.heights}"
    shots = [np.asarray(Image.open(io.BytesIO(shot)).convert("L")) for shot in seen.shots]
    assert min(shot.std() for shot in shots) > 10, f"{name}: a blank picture"
    before = pixels(page, index)
    explorer.locator("input[type=range]").first.focus()
    for _ in range(3):
        page.keyboard.press("ArrowLeft")  # the handle is at its right end
    assert changed(page, index, before), f"{name}: the keyboard does nothing"
    before = pixels(page, index)
    play = explorer.locator("button").first
    play.click()
    assert changed(page, index, before), f"{name}: play does nothing"
    if play.get_attribute("aria-pressed") == "true":
        play.click()
    for control in explorer.locator("input, select").all():
        assert control.evaluate("c => c.labels.length > 0 || c.hasAttribute('aria-label')"), name


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_a_student_can_run_drag_play_and_type(notebook, page, lab):
    labs.open_notebook(page, lab, f"{notebook}.ipynb")
    labs.run_all(page)
    page.wait_for_function(
        f"() => document.querySelectorAll('{EXPLORER} canvas').length === {len(NOTEBOOKS[notebook])}",
        timeout=60_000,
    )
    stderr = ".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr']"
    assert page.locator(stderr, has_text="Error").count() == 0
    for index, name in enumerate(NOTEBOOKS[notebook]):
        use(page, index, name)
        page.locator(EXPLORER).nth(index).screenshot(path=SHOTS / f"{notebook}-{name}.png")
    assert not page.failures


def executed(folder: Path, name: str, *cells: str) -> Path:
    """A notebook of these cells as a student's own save leaves it, with its widgets' state."""
    from nbclient import NotebookClient

    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell) for cell in cells],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
    )
    NotebookClient(notebook, timeout=120).execute()
    nbformat.write(notebook, folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"


THREE = ("from cfm_lite import widgets", *(f"widgets.{name}()" for name in ("exact_field", "own_data", "guidance")))  # fmt: skip


def test_a_saved_notebook_holds_the_engine_once_and_is_small(folder):
    path = executed(folder, "saved", *THREE)
    text = path.read_text(encoding="utf-8")
    assert text.count("Built by make widgets from sources") == 1 + 3  # each loader is 1.5 kB
    assert path.stat().st_size < 1_000_000


def test_reopened_without_a_kernel_it_is_alive(page, lab, folder):
    """Once the reader trusts the notebook; a picture stands before."""
    path = executed(folder, "reopened", *THREE)
    labs.open_notebook(page, lab, path.name)
    page.wait_for_selector(".jp-OutputArea img", timeout=20_000)
    assert page.locator(EXPLORER).count() == 0  # not trusted yet
    trusted(lab, path)
    page.goto("about:blank")
    labs.open_notebook(page, lab, path.name)
    page.wait_for_selector(f"{EXPLORER} canvas", timeout=20_000)
    for index, name in enumerate(("exact_field", "own_data", "guidance")):
        use(page, index, name)
    page.screenshot(path=SHOTS / "reopened.png")
    assert not page.failures


def trusted(lab, path: Path) -> None:
    trust = [sys.executable, "-m", "jupyter", "trust", str(path)]
    subprocess.run(trust, check=True, capture_output=True, env=lab.environment)


def test_notebook_7_runs_them_and_shows_a_saved_one_alive(page, folder):
    pytest.importorskip("notebook", reason="not run: pip install 'cfm-lite[browser]'")
    fresh = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in THREE])
    nbformat.write(fresh, folder / "seven.ipynb")
    saved = executed(folder, "seven-saved", *THREE)
    with labs.running_lab(folder, program="notebook") as classic:
        trusted(classic, saved)
        for path in (folder / "seven.ipynb", saved):
            labs.open_notebook(page, classic, path.name)
            if path != saved:
                labs.run_all(page)
            page.wait_for_function(
                f"() => document.querySelectorAll('{EXPLORER} canvas').length === 3", timeout=60_000
            )
            for index, name in enumerate(("exact_field", "own_data", "guidance")):
                use(page, index, name)
            page.screenshot(path=SHOTS / f"{path.stem}.png")
            page.goto("about:blank")
    own = "reading 'schema'"  # Notebook 7.6 looks for a setting that only JupyterLab has
    assert [failure for failure in page.failures if own not in failure] == []


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_a_committed_notebook_is_alive_before_a_cell_has_run(notebook, page, lab, folder):
    """Drag, and it moves: what `make lab` shows of a notebook that nobody ran."""
    path = folder / f"fresh-{notebook}.ipynb"
    shutil.copyfile(labs.ROOT / "notebooks" / f"{notebook}.ipynb", path)
    trusted(lab, path)
    labs.open_notebook(page, lab, path.name)
    page.wait_for_selector(f"{EXPLORER} canvas", timeout=60_000)
    assert page.locator(f"{EXPLORER} canvas").count() == len(NOTEBOOKS[notebook])
    before = at_the_left_end(page, 0)
    drag(page, positions=10, seconds=1.0)
    assert changed(page, 0, before)
    assert not page.failures


def test_an_html_export_is_alive(folder, chromium):
    """`jupyter nbconvert --to html`, opened from the disk without any network."""
    path = executed(folder, "export", *THREE)
    command = [sys.executable, "-m", "nbconvert", "--to", "html", str(path)]
    # as make html and make lab set it
    configured = os.environ | {"JUPYTER_CONFIG_PATH": str(labs.ROOT / "notebooks")}
    subprocess.run(command, check=True, capture_output=True, env=configured)
    context = chromium.new_context(offline=True, viewport={"width": 1440, "height": 1000})
    page = context.new_page()
    failures = []
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.goto(path.with_suffix(".html").as_uri())
    page.wait_for_selector(f"{EXPLORER} canvas", timeout=20_000)
    for index, name in enumerate(("exact_field", "own_data", "guidance")):
        use(page, index, name)
    page.screenshot(path=SHOTS / "export.png", full_page=True)
    context.close()
    assert not failures
    assert path.with_suffix(".html").read_text(encoding="utf-8").count("var cfmLite=") == 1


def test_a_hand_adds_moves_and_removes_components(folder, chromium):
    """On a touch screen 360 pixels wide, and with the keyboard."""
    path = explorers.page(folder / "page")
    context = chromium.new_context(viewport={"width": 360, "height": 740}, has_touch=True)
    page = context.new_page()
    page.goto(f"{path.as_uri()}#own_data")
    page.wait_for_selector("canvas")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.evaluate("document.querySelector('canvas').scrollIntoView()")
    box = page.locator("canvas").bounding_box()
    said = page.locator(".cfm-line")
    page.touchscreen.tap(box["x"] + 90, box["y"] + 90)
    page.wait_for_timeout(300)
    assert "5 components" in said.inner_text()
    page.locator("canvas").focus()
    where = page.evaluate("explorers.own_data.values.mixture.means[4]")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("c")
    moved = page.evaluate("explorers.own_data.values.mixture")
    assert moved["means"][4][1] == pytest.approx(where[1] + 0.1)
    assert moved["labels"][4] == 1
    for _ in range(6):
        page.keyboard.press("n")
        page.keyboard.press("Delete")
    page.wait_for_timeout(300)
    assert "The last component stays" in said.inner_text()
    assert "1 component in 1 class" in said.inner_text()
    context.close()


def test_a_link_holds_the_state_and_a_broken_one_is_said(folder, chromium):
    path = explorers.page(folder / "page")
    page = chromium.new_page()
    page.goto(f"{path.as_uri()}#explorer=exact_field&t=0.25&weight=0.5&label=1")
    page.wait_for_selector("canvas")
    values = page.evaluate("explorers.exact_field.values")
    assert [values[name] for name in ("t", "weight", "label")] == [0.25, 0.5, 1]
    explorer = page.get_by_role("group", name=re.compile("^Exact field"))
    explorer.get_by_role("button", name="share").click()
    link = explorer.locator(".cfm-link").input_value()
    assert "t=0.25&weight=0.5&label=1" in link
    assert path.name not in link  # never the page's own address
    page.goto("about:blank")
    page.goto(f"{path.as_uri()}#explorer=exact_field&t=25<b>")
    page.wait_for_selector("canvas")
    page.wait_for_timeout(500)
    assert "The link is broken" in explorer.locator(".cfm-line").inner_text()
    before = page.evaluate("explorers.exact_field.pictures")
    explorer.locator("select").first.select_option(index=2)
    page.wait_for_timeout(500)
    assert page.evaluate("explorers.exact_field.pictures") > before
    page.close()


@pytest.mark.parametrize("worker", [True, False], ids=["in a worker", "in slices"])
def test_networks_are_asked_beside_the_page(worker, folder, chromium):
    """From a disk too; a page that may have no worker does the same work in slices."""
    path = explorers.page(folder / "page")
    page, seen = chromium.new_page(), []
    page.on("worker", lambda one: seen.append(one.url))
    if not worker:
        page.add_init_script("delete window.Worker")
    page.goto(f"{path.as_uri()}#guidance")
    page.wait_for_selector("canvas")
    before = pixels(page, 0)
    page.evaluate("explorers.guidance.set({method: 'toy_delta_fm'})")
    page.wait_for_timeout(100)
    assert pixels(page, 0)
    page.wait_for_function("() => !explorers.guidance.busy && !explorers.guidance.dirty")
    page.wait_for_timeout(300)
    assert pixels(page, 0) != before
    assert "is being asked" not in page.locator(".cfm-line").inner_text()
    page.goto("about:blank")
    page.goto(f"{path.as_uri()}#training")
    page.wait_for_selector("canvas")
    page.get_by_label("train").check()
    page.wait_for_function("() => explorers.training.seen.count >= 30", timeout=60_000)
    assert bool(seen) is worker
    page.close()


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_with_reduced_motion_what_plays_moves_in_few_steps(motion, folder, chromium):
    """Ten steps from end to end, each more than half a second apart; otherwise it flows."""
    path = explorers.page(folder / "page")
    context = chromium.new_context(reduced_motion=motion)
    page = context.new_page()
    page.goto(f"{path.as_uri()}#exact_field")
    page.wait_for_selector("canvas")
    page.wait_for_timeout(500)
    page.get_by_role("button", name="play").click()
    watch = """() => new Promise(done => {
        const [seen, end] = [new Set(), performance.now() + 2600];
        const look = () => {
            seen.add(explorers.exact_field.values[explorers.exact_field.face.play]);
            performance.now() < end ? requestAnimationFrame(look) : done(seen.size);
        };
        look();
    })"""
    places = page.evaluate(watch)
    context.close()
    assert 2 <= places <= 5 if motion == "reduce" else places > 10


def test_an_error_is_said_and_the_picture_stays(folder, chromium):
    path = explorers.page(folder / "page")
    page = chromium.new_page()
    page.goto(f"{path.as_uri()}#wrong_velocities")
    page.wait_for_selector("canvas")
    page.wait_for_timeout(500)
    before = pixels(page, 0)
    page.get_by_label("perturbation A").select_option(label="channel_shuffle")
    page.wait_for_timeout(300)
    assert "one channel has nothing to shuffle" in page.locator(".cfm-line").inner_text()
    assert pixels(page, 0) == before
    page.get_by_label("perturbation A").select_option(label="cutmix")
    assert changed(page, 0, before)
    assert "shuffle" not in page.locator(".cfm-line").inner_text()
    page.close()


def chosen(page, label: str, value: str) -> str:
    """The line that stands a moment after a hand has chosen `value`."""
    page.get_by_label(label, exact=True).select_option(label=value)
    page.wait_for_timeout(400)
    return page.locator(".cfm-line").inner_text()


def test_a_page_without_a_kernel_shows_the_shelf_and_says_what_it_lacks(folder, chromium):
    path = explorers.page(folder / "page")
    page = chromium.new_page()
    page.goto(f"{path.as_uri()}#words")
    page.wait_for_selector("canvas")
    page.wait_for_timeout(500)
    before = pixels(page, 0)
    assert "Asked: a red seven right of a blue star" in chosen(page, "where", "right of")
    assert "Asked: a red seven (guidance 2, noise 0)" in chosen(page, "where", "alone")
    assert changed(page, 0, before)
    held = pixels(page, 0)
    assert "Without a kernel" in chosen(page, "noise", "4")
    assert pixels(page, 0) == held
    chosen(page, "noise", "0")
    assert "Asked: a pink seven" in chosen(page, "colour", "pink")
    assert changed(page, 0, held)
    page.close()


def test_python_draws_what_the_shelf_does_not_hold(page, lab, folder):
    path = folder / "words.ipynb"
    cells = ["from cfm_lite import widgets", "w = widgets.words('a pink cross', seed=3)\nw"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbformat.write(notebook, path)
    labs.open_notebook(page, lab, path.name)
    labs.run_all(page)
    page.wait_for_selector(f"{EXPLORER} canvas", timeout=60_000)
    assert "Asked: a pink cross (guidance 2, noise 3)" in page.locator(".cfm-line").inner_text()
    before = pixels(page, 0)
    chosen(page, "away from the colour", "blue")
    said = (
        "() => document.querySelector('.cfm-line').textContent.includes('noise 3, away from blue')"
    )
    page.wait_for_function(said, timeout=30_000)
    assert changed(page, 0, before)
    assert not page.failures
