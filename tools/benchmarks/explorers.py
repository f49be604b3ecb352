"""How fast the explorers follow a hand in a real browser: pictures shown while a slider is dragged
over 120 positions in 4 s.

`exact_field` computes a closed form; `trajectories` and `guidance` have up to 40 ms of model calls
behind each picture. The call and the drawing are timed without the browser too, so that it is seen
what the picture costs and what the page. Needs Chromium and Playwright.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import torch

from tools.benchmarks.harness import CannotRun, Clock, Row, count

# explorer, the slider that is dragged (counted from the first), goals of the issue: pictures a
# second, seconds to settle
CASES = (("exact_field", 0, 12.0, None), ("guidance", 0, 8.0, 0.15), ("trajectories", 0, 8.0, 0.15))


def rows(clock: Clock) -> Iterator[Row]:
    """The goals of the course: at least 12 (stretch 15) and 8 pictures a second, settled in 150 ms,
    and a page that never jumps.
    """
    try:
        import nbformat
        from playwright.sync_api import Error

        from tests.browser.lab import browser, chromium, running_lab
    except ImportError as error:
        raise CannotRun(f"needs pip install cfm-lite[browser] ({error})") from error
    if chromium() is None:
        raise CannotRun("needs Chromium; name it in CFM_LITE_CHROMIUM")
    folder = Path(tempfile.mkdtemp())
    for name, *_ in CASES:
        cell = nbformat.v4.new_code_cell(f"from cfm_lite import widgets\nwidgets.{name}()")
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), folder / f"{name}.ipynb")
    try:
        with running_lab(folder) as lab, browser() as opened:
            for case in CASES:
                yield from _measure(case, lab, opened, 2 if clock.quick else 5)
    except Error as error:
        raise CannotRun(f"the browser failed: {str(error).splitlines()[0]}") from error


def _measure(case: tuple, lab: object, opened: object, repeats: int) -> Iterator[Row]:
    from tests.browser.drag import drag
    from tests.browser.lab import open_notebook, run_all

    name, slider, goal, settle = case
    page = opened.new_page(viewport={"width": 1440, "height": 1000})
    open_notebook(page, lab, f"{name}.ipynb")
    run_all(page)
    handle = page.locator(".noUi-handle").nth(slider)
    seen = [drag(page, handle) for _ in range(repeats)]
    page.close()
    called, drawn = _inside(name)
    note = f"{seen[0].positions} positions in {seen[0].seconds:.1f} s; "
    note += f"a call takes {1e3 * called:.0f} ms, a picture {1e3 * drawn:.0f} ms"
    yield _row(
        f"explorer {name}: pictures a second", [s.rate for s in seen], ">=", goal, " a second", note
    )
    yield _row(
        f"explorer {name}: settled after",
        [1e3 * s.settle for s in seen],
        "<=",
        None if settle is None else 1e3 * settle,
        " ms",
        note,
    )
    yield count(
        f"explorer {name}: jumps of the page",
        max(len(s.heights) for s in seen) - 1,
        goal=0,
        note=note,
    )


def _row(
    name: str, values: list[float], sense: str, goal: float | None, unit: str, note: str
) -> Row:
    best = max(values) if sense == ">=" else min(values)
    return Row(name, median(values), best, sense, goal, None, unit, repeats=len(values), note=note)


def _inside(name: str) -> tuple[float, float]:
    """Median seconds of the call behind one picture, and of drawing and packing it, without Jupyter
    and without a browser.
    """
    from cfm_lite import widgets

    explorer = getattr(widgets, name)()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    slider = (
        next(iter(explorer.controls.values())) if name != "trajectories" else explorer.controls["t"]
    )
    places = [slider.min + (slider.max - slider.min) * k / 20 for k in range(21)]
    key = next(key for key, control in explorer.controls.items() if control is slider)
    called = [
        _seconds(lambda place=place: explorer.update(**explorer.values | {key: place}))
        for place in places
    ]
    drawn = [_seconds(explorer.canvas.png) for _ in places]
    torch.set_num_threads(threads)
    explorer.close()
    return median(called), median(drawn)


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
