"""Real pictures for notebook 10: ImageNet's where they are, else pieces of two photographs that
ship inside scikit-learn.
"""

from pathlib import Path

from cfm_lite._internal.files import publish
from cfm_lite._internal.lazy import random_kept
from cfm_lite.data import archive
from cfm_lite.data.root import cache_root, scratch
from cfm_lite.errors import DataError

__all__ = ["photographs"]

PER_CLASS = 32


def photographs() -> tuple[Path, str]:
    """A folder of class folders with real pictures, and one line that says what they are; nothing
    is downloaded.

    The 63 ImageNet samples under CFM_LITE_DATA, one per class; where they are not, two classes
    (china, flower) of 32 overlapping pieces each, cut on a grid out of scikit-learn's two sample
    photographs and kept in the cache.
    """
    try:
        return archive.samples(), "63 real ImageNet images, one per class"
    except DataError:
        folder = cache_root() / "photographs"
        if not (folder / "whole").exists():
            with scratch(folder, "the pictures") as folder:
                _cut(folder)
        what = (
            "64 pieces of two photographs inside scikit-learn (china, flower): the ImageNet "
            "samples are not under CFM_LITE_DATA"
        )
        return folder / "train", what


def _cut(folder: Path) -> None:
    import io

    from PIL import Image

    with random_kept():
        from sklearn.datasets import load_sample_images

    bunch = load_sample_images()
    for name, pixels in zip(bunch.filenames, bunch.images):
        label = Path(name).stem
        height, width = pixels.shape[:2]
        for number in range(PER_CLASS):
            row, column = divmod(number, 8)
            top, left = (height - 240) * row // 3, (width - 240) * column // 7
            buffer = io.BytesIO()
            Image.fromarray(pixels[top : top + 240, left : left + 240]).save(buffer, "png")
            publish(buffer.getvalue(), folder / "train" / label / f"{label}-{number:02d}.png")
    publish(b"done\n", folder / "whole")
