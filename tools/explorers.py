"""Builds the explorers' JavaScript into the one file that ships, and gives it to the saved
notebooks: `make widgets`.

The colours come from `viz.style` and `methods`, so that they stand once. The built file begins
with the hash of its sources: a test finds a file that was not built again.
"""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.colors import Colormap, to_hex, to_rgb
from PIL import Image, ImageChops, PngImagePlugin

from cfm_lite import widgets
from cfm_lite._internal.files import hash_of_file
from cfm_lite.methods import METHODS
from cfm_lite.viz import style
from cfm_lite.widgets import _words
from cfm_lite.widgets._networks import packed
from cfm_lite.widgets._widget import TRAINED
from tools import address

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "cfm_lite" / "widgets" / "js"
STATIC = ROOT / "cfm_lite" / "widgets" / "static"
BUILT = STATIC / "explorers.js"  # the engine and the faces, a classic script
NOTEBOOK = STATIC / "notebook.js"  # what a widget in a notebook loads them with, a module
COLOURS = SOURCE / "colours.json"
SHOWN = ROOT / "data" / "results" / "course"  # three of the pictures, which documents show
LARGEST = 250_000  # bytes of the built file
OURS = "/* cfm_lite explorers, MIT licence."  # how a built file begins
STATE = "application/vnd.jupyter.widget-state+json"

_MEANINGS = {
    "noise": style.NOISE,
    "data": style.DATA,
    "attract": style.ATTRACT,
    "repel": style.REPEL,
    "model": style.MODEL,
}


def _lighter(colour: str, by: float = 0.4) -> str:
    """`colour` moved towards white: on a dark page it then stands out as on a white one."""
    return to_hex([part + by * (1 - part) for part in to_rgb(colour)])


def _ramp(colours: Colormap, low: float = 0.0, high: float = 1.0, n: int = 32) -> list[str]:
    return [to_hex(colours(low + (high - low) * i / (n - 1))) for i in range(n)]


def colours() -> dict[str, Any]:
    """What the page knows of colours: those of meanings and methods, in a light and a dark theme,
    and ramps.
    """
    methods = {name: method.colour for name, method in METHODS.items() if method.colour}
    page = {"ink": "#1f1f1f", "faint": "#6b6b6b", "line": "#4d4d4d", "grid": "#e3e3e3"}
    night = {"ink": "#e8e8e8", "faint": "#a0a0a0", "line": "#b0b0b0", "grid": "#3a3a3a"}
    return {
        "light": _MEANINGS
        | {"other": style.DATA_OTHER, "truth": style.TRUTH, "paper": "#ffffff"}
        | page,
        "dark": {name: _lighter(colour) for name, colour in _MEANINGS.items()}
        | {"other": "#2f5f7d", "truth": "#ffffff", "paper": "#111111"}
        | night,
        "methods": {
            name: {"label": METHODS[name].label, "light": colour, "dark": _lighter(colour)}
            for name, colour in methods.items()
        },
        "time": _ramp(colormaps[style.TIME_MAP]),
        "drift": _ramp(colormaps["magma_r"], 0.16, 0.95),
        "diverging": _ramp(style.DIVERGING),
        "classes": [to_hex(colormaps["tab10"](i)) for i in range(10)],
    }


def written(value: dict[str, Any]) -> str:
    """`value` as the text of colours.json."""
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def fingerprint() -> str:
    """The hash of every source of the built file, whatever the line ends of the checkout."""
    found = hashlib.sha256()
    for path in sorted(SOURCE.rglob("*")):
        if path.suffix in (".js", ".css") or path == COLOURS:
            found.update(path.relative_to(SOURCE).as_posix().encode() + b"\0")
            found.update(path.read_bytes().replace(b"\r\n", b"\n") + b"\0")
    return hashlib.sha256(f"{found.hexdigest()} {site()}".encode()).hexdigest()[:16]


def site() -> str:
    """The site's public address, on which shared links are built; "" where there is none yet."""
    return address.urls().get("Homepage", "")


def banner() -> str:
    """The first line of the built file."""
    hashed = fingerprint()
    return f"{OURS} Built by make widgets from sources {hashed}. */"


def bundled(tools: Path, source: str, *options: str) -> str:
    """A source and what it imports as one text, by the esbuild of the folder `tools`."""
    command = [str(tools / "esbuild"), str(SOURCE / source), "--bundle", "--minify", *options]
    command += ["--target=es2022", "--charset=utf8", "--loader:.css=text", "--legal-comments=none"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8")
    return done.stdout


def main(tools: Path) -> None:
    """Write colours.json and the built files, and put these into the saved notebooks."""
    COLOURS.write_text(written(colours()), encoding="utf-8")
    STATIC.mkdir(exist_ok=True)
    worker = bundled(tools, "worker.js", "--format=iife")
    known = [f"--define:{n}={json.dumps(v)}" for n, v in (("SITE", site()), ("WORKER", worker))]
    built = {
        BUILT: bundled(tools, "main.js", "--format=iife", "--global-name=cfmLite", *known),
        NOTEBOOK: bundled(tools, "notebook.js", "--format=esm"),
    }
    built = {path: f"{banner()}\n{text}" for path, text in built.items()}
    size = sum(len(text.encode()) for text in built.values())
    if size > LARGEST:
        sys.exit(f"the built files have {size} bytes; at most {LARGEST} may ship")
    for path, text in built.items():
        path.write_text(text, encoding="utf-8", newline="\n")
        print(f"{path.relative_to(ROOT)}: {len(text.encode()):,} bytes")
    import nbformat  # seconds, which no other work here waits for

    for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        if renew(notebook):
            nbformat.write(notebook, path)
            print(f"{path.relative_to(ROOT)}: has the new engine")


def renew(notebook: Any) -> bool:
    """Give a saved notebook, as nbformat reads it, the built files of now; whether that changed it."""
    saved = notebook.metadata.get("widgets", {}).get(STATE, {}).get("state", {})
    built = {path: path.read_text(encoding="utf-8") for path in (BUILT, NOTEBOOK)}
    changed = False
    for entry in saved.values():
        for name, path in (("content", BUILT), ("_esm", NOTEBOOK)):
            old = entry["state"].get(name, "")
            if old.startswith(OURS) and old != built[path]:
                entry["state"][name] = built[path]
                changed = True
    return changed


def page(folder: Path) -> Path:
    """A page with every explorer in `folder`, which opens from a disk: classic scripts, nothing
    fetched. `index.html#NAME` shows one alone, `#dark` all on a dark page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = re.findall(r'name: "(\w+)",\n  title', "".join(_texts("faces")))
    data = {name: getattr(widgets, name)()._data for name in names}
    given = {"networks": {name: packed(name) for name in TRAINED}, "data": data}
    (folder / "explorers.js").write_bytes(BUILT.read_bytes())
    (folder / "data.js").write_text(f"const given = {json.dumps(given)};", encoding="utf-8")
    (folder / "index.html").write_text(
        """<!doctype html><html lang="en"><meta charset="utf-8"><title>Explorers</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>body { font-family: system-ui; margin: 12px auto; max-width: 1080px; padding: 0 8px }
section { margin: 0 0 28px } html.dark { background: #111 }</style><body>
<script src="explorers.js"></script><script src="data.js"></script><script>
const [explorers, alone] = [{}, location.hash.slice(1)];
if (alone === "dark") document.documentElement.className = "dark";
for (const [name, data] of Object.entries(given.data)) {
  if (alone in given.data && alone !== name) continue;
  const place = document.body.appendChild(document.createElement("section"));
  explorers[name] = cfmLite.mount(place, name, { data: { ...data, networks: given.networks } });
}
</script></body></html>
""",
        encoding="utf-8",
    )
    return folder / "index.html"


def pictures(browser: str, page: Path) -> None:
    """Write static/NAME.png for every explorer: what stands where no JavaScript runs, and what
    documents show.
    """
    for name in json.loads(page.with_name("data.js").read_text(encoding="utf-8")[14:-1])["data"]:
        shot = page.with_name(f"{name}.png")
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += ["--window-size=900,900", "--virtual-time-budget=4000", f"--screenshot={shot}"]
        subprocess.run([*command, f"{page.as_uri()}#{name}"], check=True, capture_output=True)
        with Image.open(shot) as whole:
            picture = whole.convert("RGB")
        white = Image.new("RGB", picture.size, "white")
        left, top, right, bottom = ImageChops.difference(picture, white).getbbox() or (0, 0, 1, 1)
        cut = picture.crop((max(left - 6, 0), max(top - 6, 0), right + 6, bottom + 6))
        few = cut.quantize(128, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        note = PngImagePlugin.PngInfo()
        if name == "words":  # whose pictures it shows
            note.add_text("shelf", hash_of_file(_words.SHELF))
        for into in (STATIC / f"{name}.png", SHOWN / f"explorer-{name}.png"):
            if into.parent == STATIC or into.exists():
                few.save(into, optimize=True, pnginfo=note)


def _texts(folder: str) -> list[str]:
    return [path.read_text(encoding="utf-8") for path in sorted((SOURCE / folder).glob("*.js"))]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    shown = page(ROOT / "build" / "explorers")
    print(shown)
    if len(sys.argv) > 2:
        pictures(sys.argv[2], shown)
