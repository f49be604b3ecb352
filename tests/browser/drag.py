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
    y, left, width = box["y"] + box["height"] / 2, box["x"] + 9, box["width"] - 18
    page.mouse.move(left, y)
    page.mouse.down()
    page.wait_for_timeout(400)
    page.evaluate(_WATCH, [index, slider])
    began, start = time.perf_counter(), page.evaluate("() => performance.now()")
    taken = []
    for step in range(1, positions + 1):
        page.mouse.move(left + width * step / positions, y)
        if shots and step % (positions // shots) == 0:
            taken.append(explorer.locator("canvas").screenshot())
        left_over = began + seconds * step / positions - time.perf_counter()
        if left_over > 0.002:
            time.sleep(left_over)
    page.mouse.up()
    took, released = time.perf_counter() - began, page.evaluate("() => performance.now()")
    page.wait_for_timeout(1000)
    result = page.evaluate(_RESULT)
    during = [at for at in result["pictures"] if start <= at <= released]
    settle = max([0.0, *(at - released for at in result["pictures"])]) / 1e3
    heights, longest = result["heights"], result["long"]
    return Seen(positions, took, len(during), settle, heights, longest, taken)
