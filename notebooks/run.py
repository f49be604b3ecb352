"""Execute notebooks from a clean kernel and write their outputs: python notebooks/run.py [--fast] [NAME ...]

What is written is free of noise: no execution times, pictures in 256 colours where that shows no difference. The
explorers' state is kept, so that a notebook opened without a kernel is alive; where no JavaScript runs, a picture
stands. The seconds of a default run are kept in data/results/notebooks.json, which the table in docs/course.md is
made from.
"""

import argparse
import base64
import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image, ImageChops

HERE = Path(__file__).resolve().parent
TIMES = HERE.parent / "data" / "results" / "notebooks.json"
SEEN = 24  # of 255 levels, at the worst pixel
WIDGET = "application/vnd.jupyter.widget-view+json"
STATE = "application/vnd.jupyter.widget-state+json"
MODEL = "IPY_MODEL_"  # before the name of one widget in the state of another
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {  # converters read the ending and the exporter here: without them a script becomes .txt
        "name": "python",
        "file_extension": ".py",
        "mimetype": "text/x-python",
        "codemirror_mode": {"name": "ipython", "version": 3},
        "nbconvert_exporter": "python",
        "pygments_lexer": "ipython3",
    },
}  # all that a kernel writes there but the version, which differs from machine to machine


def execute(path: Path) -> tuple[nbformat.NotebookNode, float]:
    """The notebook with the outputs of a fresh kernel, and the seconds it took; nbclient's error where a cell fails."""
    notebook = nbformat.read(path, as_version=4)
    began = time.perf_counter()
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(HERE)}}).execute()
    return notebook, time.perf_counter() - began


def clean(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without what differs from run to run for no reader's benefit."""
    states = notebook.metadata.get("widgets", {}).get(STATE, {"state": {}})["state"]
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata = {key: value for key, value in cell.metadata.items() if key in ("tags", "jupyter")}
        if cell.cell_type == "code":
            cell.outputs = _outputs(cell.outputs)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"  # ids by place: a new run makes no difference where nothing changed
    kept = _widgets(notebook, states)
    if kept:
        saved = {"version_major": 2, "version_minor": 0, "state": kept}
        notebook.metadata["widgets"] = nbformat.from_dict({STATE: saved})
    return notebook


def _widgets(notebook: nbformat.NotebookNode, states: dict[str, Any]) -> dict[str, Any]:
    """The state of the widgets that are shown and of those that they need, under names by place; a widget whose state
    is not known loses its view, and its picture stands.
    """
    names: dict[str, str] = {}
    waiting = []
    for output in (output for cell in notebook.cells for output in cell.get("outputs", ())):
        view = output.get("data", {}).get(WIDGET)
        if view and view["model_id"] in states:
            waiting.append(view["model_id"])
        elif view:
            del output.data[WIDGET]
    while waiting:
        model = waiting.pop(0)
        if model in states and model not in names:
            names[model] = f"widget-{len(names):02d}"
            values = states[model]["state"].values()
            waiting += [value.removeprefix(MODEL) for value in values if str(value).startswith(MODEL)]
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if WIDGET in output.get("data", {}):
                output.data[WIDGET]["model_id"] = names[output.data[WIDGET]["model_id"]]
    return {names[model]: states[model] | {"state": _state(states[model]["state"], names)} for model in names}


def _state(values: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """What is not None, which is what a page takes by itself; other widgets by their new names."""
    renamed = {MODEL + old: MODEL + new for old, new in names.items()}
    return {
        key: renamed.get(value, value) if isinstance(value, str) else value
        for key, value in sorted(values.items())
        if value is not None
    }


def _outputs(outputs: list[Any]) -> list[Any]:
    kept = []
    for output in outputs:
        if output.output_type in ("display_data", "execute_result"):
            output.metadata.pop(WIDGET, None)
            if "image/png" in output.data:
                output.data["image/png"] = _packed(output.data["image/png"])
        if (
            output.output_type == "stream"
            and kept
            and kept[-1].output_type == "stream"
            and kept[-1].name == output.name
        ):
            kept[-1].text += output.text
        elif output.output_type != "stream" or output.name == "stdout" or output.text.strip():
            kept.append(output)
    return kept


def _packed(png: str) -> str:
    """The picture in at most 256 colours where nobody sees the difference and that is smaller: plots have few."""
    raw = base64.b64decode(png)
    opened = Image.open(io.BytesIO(raw))
    if getattr(opened, "is_animated", False):  # a film has its colours already
        return png
    whole = opened.convert("RGB")
    # keeps rare colours, as in colour bars, then moves each into the middle of those that it stands for
    few = whole.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=4, dither=Image.Dither.NONE)
    worst = max(high for _, high in ImageChops.difference(whole, few.convert("RGB")).getextrema())
    buffer = io.BytesIO()
    (few if worst <= SEEN else whole).save(buffer, "png", optimize=True)
    return base64.b64encode(min(raw, buffer.getvalue(), key=len)).decode()


def keep_times(seconds: dict[str, float]) -> None:
    """Write the seconds of a default run beside those of the notebooks that were not run now."""
    rows = json.loads(TIMES.read_text(encoding="utf-8")) if TIMES.exists() else []
    known = {row["notebook"]: row for row in rows}
    known |= {
        name: {"notebook": name, "seconds": round(value, 1), "cores": os.cpu_count()} for name, value in seconds.items()
    }
    TIMES.write_text(json.dumps([known[name] for name in sorted(known)], indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", help="which notebooks, by the beginning of their name, such as 04; default: all"
    )
    parser.add_argument("--fast", action="store_true", help="CFM_LITE_FAST=1: a small run; its times are not kept")
    parser.add_argument("--out", type=Path, default=HERE, help="where the executed notebooks go; default: in place")
    arguments = parser.parse_args()
    os.environ["CFM_LITE_FAST"] = "1" if arguments.fast else "0"
    paths = [
        p for p in sorted(HERE.glob("[0-9]*.ipynb")) if not arguments.names or p.name.startswith(tuple(arguments.names))
    ]
    if not paths:
        known = ", ".join(p.stem for p in sorted(HERE.glob("[0-9]*.ipynb")))
        sys.exit(f"no notebook begins with {' or '.join(arguments.names)}; there are {known}.")
    seconds = {}
    arguments.out.mkdir(parents=True, exist_ok=True)
    for path in paths:
        notebook, seconds[path.stem] = execute(path)
        nbformat.write(clean(notebook), arguments.out / path.name)
        print(
            f"{path.name}: {seconds[path.stem]:.1f} s, {(arguments.out / path.name).stat().st_size / 1e3:.0f} kB",
            flush=True,
        )
    if not arguments.fast:
        keep_times(seconds)


if __name__ == "__main__":
    main()
