"""What a hand does to an explorer in the page, and what an eye would see: pictures shown, jumps of
the page, time to settle.
"""

import time
from dataclasses import dataclass
from typing import Any

PICTURE = ".jp-OutputArea img.widget-image"
_WATCH = """([index]) => {
  const picture = document.querySelectorAll('.jp-OutputArea img.widget-image')[index];
  const page = picture.closest('.jp-Notebook');
  const cell = picture.closest('.jp-OutputArea');
  const seen = {loads: [], heights: new Set()};
  picture.addEventListener('load', () => seen.loads.push(performance.now()));
  const look = () => {
    seen.heights.add(cell.getBoundingClientRect().height);
    if (!seen.done) requestAnimationFrame(look);
  };
  look();
  window.seen = seen;
}"""
_RESULT = """() => {
  window.seen.done = true;
  return {loads: window.seen.loads, heights: [...window.seen.heights], blank: window.seen.blank};
}"""


@dataclass
class Seen:
    """What was shown while a slider was moved over `positions` positions in `seconds`."""

    positions: int
    seconds: float
    updates: int
    settle: float  # seconds from the release to the last picture
    heights: list[float]
    shots: list[bytes]  # what was on the page on the way, as PNG

    @property
    def rate(self) -> float:
        return self.updates / self.seconds


def drag(
    page: Any,
    handle: Any,
    *,
    index: int = 0,
    positions: int = 120,
    seconds: float = 4.0,
    shots: int = 0,
) -> Seen:
    """Drag a slider's handle from its left end to its right end in even steps, with `shots`
    screenshots of the picture on the way.
    """
    handle.scroll_into_view_if_needed()
    track = handle.locator("xpath=ancestor::*[contains(@class,'noUi-target')]").bounding_box()
    box = handle.bounding_box()
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, y)
    page.mouse.down()
    page.mouse.move(track["x"], y)
    page.wait_for_timeout(500)
    page.evaluate(_WATCH, [index])
    began, start = time.perf_counter(), page.evaluate("() => performance.now()")
    taken = []
    for step in range(1, positions + 1):
        page.mouse.move(track["x"] + track["width"] * step / positions, y)
        if shots and step % (positions // shots) == 0:
            taken.append(page.locator(PICTURE).nth(index).screenshot())
        page.wait_for_timeout(
            max(0.0, 1e3 * (began + seconds * step / positions - time.perf_counter()))
        )
    page.mouse.up()
    took, released = time.perf_counter() - began, page.evaluate("() => performance.now()")
    page.wait_for_timeout(1500)
    result = page.evaluate(_RESULT)
    during = [at for at in result["loads"] if start <= at <= released]
    settle = max([0.0, *(at - released for at in result["loads"])]) / 1e3
    return Seen(positions, took, len(during), settle, result["heights"], taken)
