"""A moving picture of a sampling run: what noise becomes, step by step."""

import io
from typing import Any

import numpy as np
from PIL import Image

from cfm_lite._internal.checks import check_count
from cfm_lite._internal.lazy import optional
from cfm_lite.errors import ConfigError
from cfm_lite.viz.style import as_array

__all__ = ["film"]

HOLD = 2000  # milliseconds that the last picture stays


def film(states: Any, *, enlarge: int = 4, pause: int = 120) -> Any:
    """A PNG that loops over `states` (S, n, C, H, W) in [-1, 1]: n images side by side at S times.
    Whatever shows the figures of a notebook shows it too: a site, an export, a code host.

    Each pixel is shown as a square of `enlarge` pixels (half as large in the file, for noise packs
    badly), and each time stays for `pause` milliseconds.
    Raises ConfigError for other shapes, for NaN, and for channels that are neither 1 nor 3.
    """
    check_count("enlarge", enlarge)
    check_count("pause", pause)
    frames = as_array("states", states, None, None, None, None, None)
    if frames.shape[2] not in (1, 3):
        raise ConfigError(
            f"states have {frames.shape[2]} channels, shape {frames.shape}; images have 1 or 3."
        )
    levels = np.rint((np.clip(frames, -1, 1) + 1) * 127.5).astype(np.uint8)
    rows = np.concatenate(list(levels.swapaxes(0, 1)), axis=-1)  # (S, C, H, n W)
    kept = max(1, enlarge // 2)
    pixels = rows.repeat(kept, axis=2).repeat(kept, axis=3).transpose(0, 2, 3, 1)
    pictures = [Image.fromarray(p[..., 0] if p.shape[-1] == 1 else p) for p in pixels]
    if frames.shape[2] == 3:  # 256 colours, chosen once for all pictures: a third of the bytes
        every = Image.fromarray(np.concatenate(list(pixels))).quantize(256)
        pictures = [
            picture.quantize(palette=every, dither=Image.Dither.NONE) for picture in pictures
        ]
    buffer = io.BytesIO()
    duration = [pause] * (len(pictures) - 1) + [HOLD]
    pictures[0].save(
        buffer, "PNG", save_all=True, append_images=pictures[1:], duration=duration, loop=0
    )
    width = enlarge * rows.shape[-1]
    image = optional("IPython.display", "notebooks").Image
    return image(buffer.getvalue(), format="png", width=width)
