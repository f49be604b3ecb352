"""A small picture of each notebook for docs/course.md: python -m tools.covers

It is taken from the notebook's own outputs: that of the cell tagged "cover", else the widest of the
first three. It is scaled down, never drawn again.
"""

import base64
import io
from pathlib import Path

import nbformat
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "data" / "results" / "course"
SIZE = (420, 240)  # pixels that a cover fits into; the page shows it at half of that width


def pictures(path: Path) -> list[tuple[bool, Image.Image]]:
    """(is it tagged, picture) of every picture in a notebook's outputs, in order."""
    found = []
    for cell in nbformat.read(path, as_version=4).cells:
        for output in cell.get("outputs", []):
            png = output.get("data", {}).get("image/png")
            picture = Image.open(io.BytesIO(base64.b64decode(png))) if png else None
            if picture and not getattr(picture, "is_animated", False):  # a film begins with noise
                found.append(("cover" in cell.metadata.get("tags", []), picture.convert("RGB")))
    return found


def cover(path: Path) -> Image.Image:
    """The cover of one notebook, at most SIZE."""
    every = pictures(path)
    if not every:
        raise SystemExit(
            f"{path.name} has no picture; run it first: python notebooks/run.py {path.name[:2]}"
        )
    chosen = next((picture for tagged, picture in every if tagged), None) or max(
        (p for _, p in every[:3]), key=lambda p: p.width
    )
    chosen.thumbnail(SIZE, Image.Resampling.LANCZOS)
    return chosen


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for notebook in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        cover(notebook).quantize(128).save(FOLDER / f"{notebook.stem}.png", optimize=True)
        print(FOLDER / f"{notebook.stem}.png")
