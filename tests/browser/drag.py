"""What a hand does to an explorer in the page, and what an eye would see: pictures shown, jumps of
the page, time to settle.
"""

import time
from dataclasses import dataclass
from typing import Any

EXPLORER = ".cfm-lite"
# A picture counts if the slider's value and the pixels are both new: a small copy of the canvas is compared.
_WATCH = """([index, slider]) => {
  const explorer = document.querySelectorAll('.cfm-lite')[index];
  const canvas = explorer.querySelector('canvas');
  const input = explorer.querySelectorAll('input[type=range]')[slider];
  const small = new OffscreenCanvas(160, 60).getContext('2d', {willReadFrequently: true});
  const seen = {pictures: [], heights: new Set(), long: 0};
  let [pixels, value, last] = ['', '', performance.now()];
  const look = now => {
    seen.heights.add(explorer.getBoundingClientRect().height);
    if (input.value !== value) {
      small.clearRect(0, 0, 160, 60);
      small.drawImage(canvas, 0, 0, 160, 60);
      let hash = 0;
      for (const part of new Uint32Array(small.getImageData(0, 0, 160, 60).data.buffer)) hash = Math.imul(hash ^ part, 2654435761) + 1 | 0;
      if (hash !== pixels) {
        seen.pictures.push(performance.now());
        [pixels, value] = [hash, input.value];
      }
    }
    seen.long = Math.max(seen.long, now - last);
    last = now;
    if (!seen.done) requestAnimationFrame(look);
  };
  requestAnimationFrame(look);
  window.seen = seen;
}"""
_RESULT = """() => {
  window.seen.done = true;
  return {pictures: window.seen.pictures, heights: [...window.seen.heights], long: window.seen.long};
}"""


@dataclass
class Seen:
    """What was shown while a slider was moved over `positions` positions in `seconds`."""

    positions: int
    seconds: float
    updates: int
    settle: float  # seconds from the release to the last picture
    heights: list[float]
    longest: float  # milliseconds between two frames
    shots: list[bytes]  # what was on the page on the way, as PNG

    @property
    def rate(self) -> float:
        return self.updates / self.seconds


def drag(
    page: Any,
    *,
    index: int = 0,
    slider: int = 0,
    positions: int = 240,
    seconds: float = 4.0,
    shots: int = 0,
) -> Seen:
    """Drag the slider number `slider` of the explorer number `index` from its left end to its right
    end in even steps, with `shots` screenshots of the picture on the way.
    """
    explorer = page.locator(EXPLORER).nth(index)
    track = explorer.locator("input[type=range]").nth(slider)
    track.scroll_into_view_if_needed()
    box = track.bounding_box()
    start = (box["x"] + 9, box["y"] + box["height"] / 2)
    picture = explorer.locator("canvas") if shots else None
    watch = (_WATCH, [index, slider])
    return _moved(page, start, box["width"] - 18, watch, positions, seconds, picture, shots)


_FOLLOW = """([index, slider, positions, seconds]) => new Promise(done => {
  const explorer = document.querySelectorAll('.cfm-lite')[index];
  const input = explorer.querySelectorAll('input[type=range]')[slider];
  const [low, high, began] = [Number(input.min), Number(input.max), performance.now()];
  let at = 0;
  const move = () => {
    const due = Math.min(positions, Math.floor((performance.now() - began) / 1000 / seconds * positions));
    if (due > at) {
      at = due;
      input.value = low + (high - low) * at / positions;
      input.dispatchEvent(new Event('input', {bubbles: true}));
    }
    if (at < positions) setTimeout(move, 1000 * seconds / positions);
    else done(performance.now());
  };
  move();
})"""


def follow(
    page: Any, *, index: int = 0, slider: int = 0, positions: int = 240, seconds: float = 4.0
) -> Seen:
    """As `drag`, but the page itself moves the slider: each move of the mouse would wait for the
    browser's answer, which on a busy machine takes longer than a picture.
    """
    page.evaluate(_WATCH, [index, slider])
    began = page.evaluate("() => performance.now()")
    ended = page.evaluate(_FOLLOW, [index, slider, positions, seconds])
    page.wait_for_timeout(1000)
    result = page.evaluate(_RESULT)
    during = [moment for moment in result["pictures"] if began <= moment <= ended]
    settle = max([0.0, *(moment - ended for moment in result["pictures"])]) / 1e3
    heights, longest = result["heights"], result["long"]
    took = (ended - began) / 1e3
    return Seen(positions, took, len(during), settle, heights, longest, [])


_WATCH_OLD = """() => {
  const picture = document.querySelector('.jp-OutputArea img.widget-image');
  const cell = picture.closest('.jp-OutputArea');
  const seen = {pictures: [], heights: new Set(), long: 0};
  picture.addEventListener('load', () => seen.pictures.push(performance.now()));
  const look = () => {
    seen.heights.add(cell.getBoundingClientRect().height);
    if (!seen.done) requestAnimationFrame(look);
  };
  look();
  window.seen = seen;
}"""


def drag_old(page: Any, positions: int = 240, seconds: float = 4.0) -> Seen:
    """The same for an explorer whose pictures a kernel drew, for a comparison."""
    handle = page.locator(".noUi-handle").first
    handle.scroll_into_view_if_needed()
    track = handle.locator("xpath=ancestor::*[contains(@class,'noUi-target')]").bounding_box()
    box = handle.bounding_box()
    start = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    left = (track["x"], start[1])
    return _moved(page, start, track["width"], (_WATCH_OLD, None), positions, seconds, left=left)


def _moved(
    page: Any,
    start: tuple[float, float],
    width: float,
    watch: tuple[str, Any],
    positions: int,
    seconds: float,
    picture: Any = None,
    shots: int = 0,
    left: tuple[float, float] | None = None,
) -> Seen:
    page.mouse.move(*start)
    page.mouse.down()
    x, y = left or start
    page.mouse.move(x, y)
    page.wait_for_timeout(500)
    page.evaluate(*watch)
    began, at = time.perf_counter(), page.evaluate("() => performance.now()")
    taken = []
    for step in range(1, positions + 1):
        page.mouse.move(x + width * step / positions, y)
        if shots and step % (positions // shots) == 0:
            taken.append(picture.screenshot())
        rest = began + seconds * step / positions - time.perf_counter()
        if rest > 0.001:
            time.sleep(rest)
    page.mouse.up()
    took, released = time.perf_counter() - began, page.evaluate("() => performance.now()")
    page.wait_for_timeout(1000)
    result = page.evaluate(_RESULT)
    during = [moment for moment in result["pictures"] if at <= moment <= released]
    settle = max([0.0, *(moment - released for moment in result["pictures"])]) / 1e3
    heights, longest = result["heights"], result["long"]
    return Seen(positions, took, len(during), settle, heights, longest, taken)
