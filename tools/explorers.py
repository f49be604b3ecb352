"""Builds the explorers' JavaScript into the one file that ships: `make widgets`.

The colours come from `viz.style` and `methods`, so that they stand once. The first line of the built
file names the hash of its sources: a test finds a file that was not built again.
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

from cfm_lite.methods import METHODS
from cfm_lite.viz import style
from cfm_lite.widgets._networks import packed

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "cfm_lite" / "widgets" / "js"
BUILT = ROOT / "cfm_lite" / "widgets" / "static" / "explorers.js"
COLOURS = SOURCE / "colours.json"
SHIPPED = ("toy_fm", "toy_delta_fm", "toy_vecor")  # the networks that an explorer asks
LARGEST = 250_000  # bytes of the built file

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
    return found.hexdigest()[:16]


def banner() -> str:
    """The first line of the built file."""
    return f"/* cfm_lite explorers, MIT licence. Built by make widgets from sources {fingerprint()}. */"


def main(tools: Path) -> None:
    """Write colours.json and the built file, with the esbuild of the folder `tools`."""
    COLOURS.write_text(written(colours()), encoding="utf-8")
    BUILT.parent.mkdir(exist_ok=True)
    command = [str(tools / "esbuild"), str(SOURCE / "main.js"), "--bundle", "--minify"]
    command += ["--format=iife", "--global-name=cfmLite", "--target=es2022", "--charset=utf8"]
    command += ["--loader:.css=text", "--legal-comments=none"]
    code = subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8")
    text = f"{banner()}\n{code.stdout}"
    if len(text.encode()) > LARGEST:
        sys.exit(f"the built file has {len(text.encode())} bytes; at most {LARGEST} may ship")
    BUILT.write_text(text, encoding="utf-8", newline="\n")
    print(f"{BUILT.relative_to(ROOT)}: {len(text.encode()):,} bytes")


def page(folder: Path) -> Path:
    """A page with every explorer in `folder`, which opens from a disk: classic scripts, nothing
    fetched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = re.findall(r'name: "(\w+)",\n  title', "".join(_texts("faces")))
    networks = {name: packed(name) for name in SHIPPED}
    calls = "".join(f'show("{name}");' for name in names)
    (folder / "explorers.js").write_bytes(BUILT.read_bytes())
    (folder / "networks.js").write_text(
        f"const networks = {json.dumps(networks)};", encoding="utf-8"
    )
    (folder / "index.html").write_text(
        f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>Explorers</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>body {{ font-family: system-ui; margin: 12px auto; max-width: 1080px; padding: 0 8px; background: #fff }}
section {{ margin: 0 0 28px }} .dark {{ background: #111 }}</style><body>
<script src="explorers.js"></script><script src="networks.js"></script><script>
const explorers = {{}};
if (location.hash === "#dark") document.body.className = "dark";
function show(name) {{
  const place = document.body.appendChild(document.createElement("section"));
  explorers[name] = cfmLite.mount(place, name, {{ data: {{ networks }} }});
}}
{calls}</script></body></html>
""",
        encoding="utf-8",
    )
    return folder / "index.html"


def _texts(folder: str) -> list[str]:
    return [path.read_text(encoding="utf-8") for path in sorted((SOURCE / folder).glob("*.js"))]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    print(page(ROOT / "build" / "explorers"))
