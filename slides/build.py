"""Build the slides: python -m slides.build  (make slides installs Marp first)

Fills in the numbers, turns each Markdown deck into one HTML file that asks the network for nothing and into a PDF, and notes in
slides/built.json which sources they were made of, so that a test can tell a stale build.

A number stands in the source as  <data value="FILE METHOD METRIC [KEY=VALUE ...] FORMAT">1.23</data>:  the one row of
data/results/FILE.json with that method, metric and settings, written in Python's FORMAT.
"""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "data" / "results"
MARP = HERE / "node_modules" / ".bin" / "marp"
MANIFEST = HERE / "built.json"
NUMBER = re.compile(r'(<data value="([^"]*)">)[^<]*(</data>)')
IMAGE = re.compile(r'(?<=src=")img/[\w.-]+(?=")')
PLAIN = " !'()*,-./:;=@_"  # what may stand unquoted in a double-quoted address


def decks() -> list[Path]:
    return sorted(HERE.glob("[0-9]_*.md"))


def number(reference: str) -> str:
    """The number that `reference` names; ValueError unless it fits exactly one value."""
    file, method, metric, *settings, form = reference.split()
    wanted = {"method": method, "metric": metric} | dict(setting.split("=", 1) for setting in settings)
    rows = json.loads((RESULTS / f"{file}.json").read_text(encoding="utf-8"))
    found = {row["value"] for row in rows if all(str(row.get(key)) == value for key, value in wanted.items())}
    if len(found) != 1:
        raise ValueError(f"{reference!r} fits {len(found)} values of {file}.json; name one row by more settings, such as nfe=50.")
    return format(found.pop(), form)


def filled(text: str) -> str:
    """The deck's source with every number as its result file says."""
    return NUMBER.sub(lambda match: f"{match[1]}{number(match[2])}{match[3]}", text)


def images(text: str) -> list[Path]:
    """The pictures that a deck's source or HTML shows."""
    return [HERE / name for name in sorted(set(re.findall(r"img/[\w.-]+\.(?:svg|png)", text)))]


def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def source_digest(deck: Path) -> str:
    """One hash of all that a build of `deck` depends on: its text, the theme and its pictures."""
    text = deck.read_text(encoding="utf-8")
    return digest(text.encode(), (HERE / "theme.css").read_bytes(), *(path.read_bytes() for path in images(text)))


def data_uri(path: Path) -> str:
    """A picture as an address that holds it; an SVG stays text, which is shorter than base64."""
    if path.suffix == ".svg":
        return f"data:image/svg+xml,{quote(path.read_text(encoding='utf-8').replace(chr(34), chr(39)), safe=PLAIN)}"
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def inlined(html: str) -> str:
    """The HTML with its pictures inside."""
    return IMAGE.sub(lambda match: data_uri(HERE / match[0]), html)


def marp(*arguments: str) -> None:
    """Run Marp; a root user's Chromium runs without its sandbox, as it must."""
    chrome = os.environ.get("CHROME_PATH") or shutil.which("chromium") or shutil.which("google-chrome") or ""
    environment = os.environ | ({"CHROME_PATH": chrome} if chrome else {})
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        environment["CHROME_NO_SANDBOX"] = "1"
    command = [str(MARP), "--html", "--theme-set", "theme.css", "--no-config-file", *arguments]
    subprocess.run(command, cwd=HERE, env=environment, check=True, stdin=subprocess.DEVNULL)


def build() -> None:
    if not MARP.exists():
        sys.exit(f"there is no {MARP.relative_to(HERE.parent)}; make slides installs it (it needs Node 20 or newer).")
    missing = [path.name for deck in decks() for path in images(deck.read_text(encoding="utf-8")) if not path.exists()]
    if missing:
        sys.exit(f"slides/img has no {', '.join(missing)}; make figures draws them, or a deck asks for the wrong ending.")
    for deck in decks():
        deck.write_text(filled(deck.read_text(encoding="utf-8")), encoding="utf-8")
    names = [deck.name for deck in decks()]
    marp(*names)
    marp("--pdf", "--allow-local-files", *names)
    manifest = {}
    for deck in decks():
        page, paper = deck.with_suffix(".html"), deck.with_suffix(".pdf")
        page.write_text(inlined(page.read_text(encoding="utf-8")), encoding="utf-8")
        manifest[deck.stem] = {"source": source_digest(deck), "html": digest(page.read_bytes()), "pdf": digest(paper.read_bytes())}
    MANIFEST.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    build()
