"""Build the slides: python -m slides.build  (make slides installs Marp first)

Fills in the numbers, turns each Markdown deck into one HTML file that asks the network for nothing
and into a PDF, and notes in slides/built.json which sources they were made of, so that a test can
tell a stale build.

A number stands in the source as  <data value="FILE METHOD METRIC [KEY=VALUE ...] FORMAT">1.23</data>:  the one row of
data/results/FILE.json with that method, metric and settings, written in Python's FORMAT. Of rows that differ in their seed alone,
of=mean is the mean and of=seeds their number; of=difference is the paired difference to the method less=NAME with its interval,
and of=verdict what the statistics allow to be said of it.
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
from typing import Any
from urllib.parse import quote

from cfm_lite.lab import paired_difference
from tools.report.results import said_of

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
    """The number that `reference` names; ValueError unless it fits exactly one value, or with
    of=... one value of each seed.
    """
    file, method, metric, *settings, form = reference.split()
    wanted = dict(setting.split("=", 1) for setting in settings)
    what, base = wanted.pop("of", "value"), wanted.pop("less", "fm")
    rows = json.loads((RESULTS / f"{file}.json").read_text(encoding="utf-8"))
    mine = _by_seed(rows, {"method": method, "metric": metric} | wanted, reference)
    if what == "value":
        if len(set(mine.values())) != 1:
            raise ValueError(
                f"{reference!r} fits {len(mine)} values of {file}.json; name one row by more "
                "settings, or say of=mean."
            )
        return format(next(iter(mine.values())), form)
    if what in ("mean", "seeds"):
        return format(sum(mine.values()) / len(mine) if what == "mean" else len(mine), form)
    d = paired_difference(
        method,
        metric,
        0,
        mine,
        _by_seed(rows, {"method": base, "metric": metric} | wanted, reference),
    )
    if what == "verdict":
        return format(said_of(d), form)
    mean, low, high = (format(value, form).replace("-", "−") for value in (d.mean, d.low, d.high))
    return f"{mean} [{low}, {high}]"


def _by_seed(
    rows: list[dict[str, Any]], wanted: dict[str, str], reference: str
) -> dict[int, float]:
    """{seed: value} of the rows that fit; ValueError without any, and where one seed has two
    values.
    """
    found: dict[int, set[float]] = {}
    for row in rows:
        if all(str(row.get(key)) == value for key, value in wanted.items()):
            found.setdefault(row.get("seed", 0), set()).add(row["value"])
    if not found or max(map(len, found.values())) > 1:
        several = "several values of one seed" if found else "no value"
        raise ValueError(
            f"{reference!r} fits {several}; name rows by more settings, such as nfe=50."
        )
    return {seed: values.pop() for seed, values in found.items()}


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
    return digest(
        text.encode(),
        (HERE / "theme.css").read_bytes(),
        *(path.read_bytes() for path in images(text)),
    )


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
    chrome = (
        os.environ.get("CHROME_PATH")
        or shutil.which("chromium")
        or shutil.which("google-chrome")
        or ""
    )
    environment = os.environ | ({"CHROME_PATH": chrome} if chrome else {})
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        environment["CHROME_NO_SANDBOX"] = "1"
    command = [str(MARP), "--html", "--theme-set", "theme.css", "--no-config-file", *arguments]
    subprocess.run(command, cwd=HERE, env=environment, check=True, stdin=subprocess.DEVNULL)


def build() -> None:
    if not MARP.exists():
        sys.exit(
            f"there is no {MARP.relative_to(HERE.parent)}; make slides installs it (it needs Node "
            "20 or newer)."
        )
    missing = [
        path.name
        for deck in decks()
        for path in images(deck.read_text(encoding="utf-8"))
        if not path.exists()
    ]
    if missing:
        sys.exit(
            f"slides/img has no {', '.join(missing)}; make figures draws them, or a deck asks for "
            "the wrong ending."
        )
    for deck in decks():
        deck.write_text(filled(deck.read_text(encoding="utf-8")), encoding="utf-8")
    names = [deck.name for deck in decks()]
    marp(*names)
    marp("--pdf", "--allow-local-files", *names)
    manifest = {}
    for deck in decks():
        page, paper = deck.with_suffix(".html"), deck.with_suffix(".pdf")
        page.write_text(inlined(page.read_text(encoding="utf-8")), encoding="utf-8")
        manifest[deck.stem] = {
            "source": source_digest(deck),
            "html": digest(page.read_bytes()),
            "pdf": digest(paper.read_bytes()),
        }
    MANIFEST.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    build()
