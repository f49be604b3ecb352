"""How fast the explorers follow a hand in a real browser, the new ones beside the old.

A slider passes 240 positions in 4 s, in real JupyterLab in headless Chromium: a new one is moved by
the page, an old one, which follows no such move, by the mouse. A picture of
a new explorer counts only if the slider's value and the pixels are both new; a picture of an old one
counts when it is loaded. The old explorers, whose kernel drew each picture, are taken from the last
commit that has them. Needs Chromium, Playwright and the repository's history.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tools.benchmarks.harness import ROOT, CannotRun, Clock, Row, count, unpacked

OLD = "775c1be"  # the last commit whose kernel drew the explorers


@dataclass(frozen=True)
class Case:
    """What is shown, which slider is dragged, and the goal in pictures a second."""

    name: str
    call: str
    slider: int
    goal: float
    old: str = ""  # the call at the old commit; its first slider is dragged


CASES = (
    Case("exact_field", "exact_field()", 0, 50, "exact_field()"),
    Case("trajectories, λ, 500 particles, 32 steps", "trajectories('delta_fm', steps=32)", 1, 50),
    Case("trajectories, t, 500 particles, 32 steps", "trajectories('delta_fm', steps=32)", 0, 50, "trajectories('delta_fm', steps=32)"),
    Case("divergence", "divergence()", 0, 50, "divergence()"),
    Case("guidance", "guidance()", 0, 50, "guidance()"),
    Case("guidance, trained", "guidance(method='toy_delta_fm')", 0, 5, "guidance(method='toy_delta_fm')"),
)  # fmt: skip


# when the prompt has its number, and when the explorer has drawn
_FIRST = """() => {
  window.first = {};
  const look = now => {
    const ran = [...document.querySelectorAll('.jp-InputPrompt')].some(p => /\\[\\d+\\]/.test(p.textContent));
    if (ran) window.first.ran ??= now;
    if (document.querySelector('.cfm-lite canvas[style*=height]')) window.first.shown ??= now;
    if (!window.first.ran || !window.first.shown) requestAnimationFrame(look);
  };
  requestAnimationFrame(look);
}"""


def rows(clock: Clock) -> Iterator[Row]:
    """Goals: 50 pictures a second for closed forms, 5 for a network, the first one 150 ms after its
    cell, a page that never jumps.
    """
    try:
        import nbformat
        from playwright.sync_api import Error

        from tests.browser.lab import browser, chromium, running_lab
    except ImportError as error:
        raise CannotRun(f"needs pip install cfm-lite[browser] ({error})") from error
    if chromium() is None:
        raise CannotRun("needs Chromium; name it in CFM_LITE_CHROMIUM")
    old = unpacked(OLD, Path(tempfile.mkdtemp()))
    try:
        for side, root in (("new", ROOT), ("old", old)):
            folder = Path(tempfile.mkdtemp())
            with running_lab(folder, root) as lab, browser() as opened:
                for number, case in enumerate(CASES):
                    call = case.call if side == "new" else case.old
                    if not call:
                        continue
                    cell = nbformat.v4.new_code_cell(
                        f"from cfm_lite import widgets\nwidgets.{call}"
                    )
                    path = folder / f"{number}.ipynb"
                    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
                    repeats = 2 if clock.quick else 5
                    yield from _measure(side, case, lab, opened, path.name, repeats)
    except Error as error:
        raise CannotRun(f"the browser failed: {str(error).splitlines()[0]}") from error


def _measure(
    side: str, case: Case, lab: Any, opened: Any, notebook: str, repeats: int
) -> Iterator[Row]:
    from tests.browser.drag import drag_old, follow
    from tests.browser.lab import open_notebook, run_all

    page = opened.new_page(viewport={"width": 1440, "height": 1000})
    sent: list[int] = []

    def heard(socket: Any) -> None:
        socket.on("framesent", lambda frame: sent.append(len(frame)))
        socket.on("framereceived", lambda frame: sent.append(len(frame)))

    page.on("websocket", heard)
    open_notebook(page, lab, notebook)
    page.evaluate(_FIRST)
    run_all(page)
    if side == "new":
        page.wait_for_selector(".cfm-lite canvas", timeout=60_000)
    page.wait_for_timeout(1500)
    seen, wire = [], []
    for _ in range(repeats):
        sent.clear()
        seen.append(follow(page, slider=case.slider) if side == "new" else drag_old(page))
        wire.append(sum(sent) / 1e3)
    first = page.evaluate("() => Math.max(0, window.first.shown - window.first.ran)")
    page.close()
    goal = case.goal if side == "new" else None
    note = f"{seen[0].positions} positions in {seen[0].seconds:.1f} s"
    name = f"{side} explorer {case.name}"
    rates, settled = [s.rate for s in seen], [1e3 * s.settle for s in seen]
    yield _row(f"{name}: pictures a second", rates, ">=", goal, " a second", note)
    yield _row(f"{name}: settled after", settled, "<=", None, " ms", note)
    yield _row(f"{name}: kB on the wire", wire, "<=", None, " kB", note)
    if side == "new":
        yield _row(f"{name}: first picture after its cell", [first], "<=", 150, " ms", "")
        jumps = max(len(s.heights) for s in seen) - 1
        yield count(f"{name}: jumps of the page", jumps, goal=0, note=note)


def _row(
    name: str, values: list[float], sense: str, goal: float | None, unit: str, note: str
) -> Row:
    best = max(values) if sense == ">=" else min(values)
    return Row(name, median(values), best, sense, goal, None, unit, repeats=len(values), note=note)
