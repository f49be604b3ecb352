"""Made images on disk, for tests of what reads image folders."""

from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, width: int = 40, height: int = 32) -> Image.Image:
    """A smooth random RGB image, unlike its mirror image."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )


def made_folder(root: Path, classes: int = 3, each: int = 8) -> Path:
    """`classes` folders of `each` PNG images under `root`."""
    for c in range(classes):
        folder = root / f"class{c}"
        folder.mkdir(parents=True)
        for i in range(each):
            picture(100 * c + i).save(folder / f"{i:03d}.png")
    return root
