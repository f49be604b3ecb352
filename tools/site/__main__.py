"""Build the site into build/site: python -m tools.site (make site, which fetches what it needs)

The pages lie as their sources lie in the repository, so that links between them hold. Everything that
a page needs is a file of the site: it opens from a disk, and asks no server for anything. What is
taken from other packages is named in THIRD_PARTY.txt with its licence.
"""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import nbformat

from cfm_lite import widgets
from cfm_lite.widgets import _networks
from tools import explorers
from tools.site import api, notebooks

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
BUILD = ROOT / "build"
PAGES, SITE = BUILD / "site-pages", BUILD / "site"
PACKAGES = BUILD / "site-npm" / "node_modules"
LARGEST = 60_000_000  # bytes of the whole site

COPIED = (
    "CITATION.cff",
    "slides/*.html",
    "slides/*.pdf",
    "notebooks/*.ipynb",
    "data/results/*.png",
)
COPIED += ("data/results/*.webp", "data/results/course/*.png")
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "slides/README.md")
DOCUMENTS += ("docs/teaching/*.md", "data/README.md", "data/results/*.md")
# what the site takes: {the package: {its files: their place in assets/}}
TAKEN = {
    "katex": {
        "dist/katex.min.js": "katex",
        "dist/katex.min.css": "katex",
        "dist/contrib/auto-render.min.js": "katex",
        "dist/fonts/*.woff2": "katex/fonts",
    },
    "iframe-worker": {"shim/index.js": "iframe-worker.js"},
    "@mermaid-js/tiny": {"dist/mermaid.tiny.js": "mermaid.js"},
    "@fontsource-variable/inter": {
        f"files/inter-{part}-wght-{style}.woff2": "fonts"
        for part in ("latin", "latin-ext", "greek")
        for style in ("normal", "italic")
    },
    "@fontsource-variable/jetbrains-mono": {
        f"files/jetbrains-mono-{part}-wght-normal.woff2": "fonts"
        for part in ("latin", "latin-ext", "greek")
    },
}
THEMES = ("mkdocs-material", "mkdocs", "mkdocstrings", "mkdocstrings-python", "Pygments")
MERMAID = '<script src="{up}assets/mermaid.js"></script>'


def main() -> None:
    """Write the pages, build the site, and say how large it is and how long it took."""
    began = time.perf_counter()
    if not PACKAGES.is_dir():
        sys.exit(f"the site's packages are not in {PACKAGES}. Run: make site")
    shutil.rmtree(PAGES, ignore_errors=True)
    shutil.rmtree(SITE, ignore_errors=True)
    write_pages()
    write_assets()
    settings = PAGES.with_name("mkdocs.yml")  # JSON is YAML
    inherited = {"INHERIT": str(HERE / "mkdocs.yml"), "docs_dir": str(PAGES), "site_dir": str(SITE)}
    settings.write_text(json.dumps(inherited | {"nav": navigation()}), encoding="utf-8")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-f", str(settings)]
    subprocess.run(command, check=True, cwd=ROOT)
    (SITE / "sitemap.xml").unlink(missing_ok=True)  # it would need a public address
    (SITE / "sitemap.xml.gz").unlink(missing_ok=True)
    size = sum(path.stat().st_size for path in SITE.rglob("*") if path.is_file())
    if size > LARGEST:
        sys.exit(f"the site has {size:,} bytes; at most {LARGEST:,} are allowed.")
    took = time.perf_counter() - began
    print(f"{SITE / 'index.html'}: {size / 1e6:.1f} MB, built in {took:.0f} s")


def write_pages() -> None:
    """Every page as Markdown, and what the pages show, in PAGES."""
    for path in _found(COPIED):
        shutil.copyfile(path, _place(path))
    for path in _found(DOCUMENTS):
        text = notebooks.for_the_site(path.read_text(encoding="utf-8"))
        if "```mermaid" in text:
            text += "\n" + MERMAID.format(up="../" * (len(path.relative_to(ROOT).parts) - 1))
        _place(path).write_text(text, encoding="utf-8")
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        notebooks.written(path.stem, nbformat.read(path, as_version=4), PAGES / "notebooks")
    start = PAGES / "README.md"
    start.write_text(with_explorer(start.read_text(encoding="utf-8")), encoding="utf-8")
    (PAGES / "explorers.md").write_text(explorers_page(), encoding="utf-8")
    (PAGES / "THIRD_PARTY.txt").write_text(third_party(), encoding="utf-8")
    (PAGES / "api").mkdir()
    (PAGES / "api" / "README.md").write_text(api.index(), encoding="utf-8")
    (PAGES / "api" / "commands.md").write_text(api.commands(), encoding="utf-8")
    for room in (room for found in api.rooms().values() for room in found):
        (PAGES / "api" / f"{room}.md").write_text(api.page(room), encoding="utf-8")


def write_assets() -> None:
    """The explorers' engine and networks, the look of the site, and what is taken from others."""
    assets = PAGES / "assets"
    assets.mkdir()
    for name in ("site.css", "site.js", "logo.svg"):
        shutil.copyfile(HERE / name, assets / name)
    networks = {name: _networks.packed(name) for name in explorers.TRAINED}
    text = f"globalThis.cfmLiteNetworks = {json.dumps(networks)};\n"
    engine = explorers.BUILT.read_text(encoding="utf-8")
    (assets / "explorers.js").write_text(f"{engine}\n{text}", encoding="utf-8")
    for package, files in TAKEN.items():
        for pattern, place in files.items():
            found = sorted((PACKAGES / package).glob(pattern))
            if not found:
                sys.exit(
                    f"{package} has no {pattern} any more; see TAKEN in tools/site/__main__.py"
                )
            for path in found:
                into = assets / place if "." in place else assets / place / path.name
                into.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, into)


def mounted(name: str, place: str) -> str:
    """The explorer `name` as a part of a page that has the engine; its picture until it stands."""
    data = json.dumps(getattr(widgets, name)()._data).replace("<", "\\u003c")
    call = f'cfmLite.mount(document.getElementById("{place}"), "{name}", '
    call += f"{{data: {{...{data}, networks: globalThis.cfmLiteNetworks}}}});"
    return f'<div class="explorer" id="{place}"></div>\n<script>{call}</script>'


def with_explorer(readme: str) -> str:
    """The README as the start page: an explorer stands before its first section."""
    head, mark, rest = readme.partition("\n## ")
    script = '<script src="assets/explorers.js"></script>'
    own = f"{script}\n\n{mounted('own_data', 'start')}"
    more = (
        "*Tap the plane: it gets one more component, and the fields follow. All of it is computed "
    )
    more += "here, in the page. [All explorers](explorers.md)*"
    return f"---\nhide: [navigation]\n---\n\n{head}\n{own}\n\n{more}\n{mark}{rest}"


def explorers_page() -> str:
    """A page with every explorer, each with the first sentence of its docstring."""
    parts = ["---\nhide: [navigation]\n---", "# Explorers"]
    parts.append('<script src="assets/explorers.js"></script>')
    order = (widgets.__doc__ or "").find  # it tells them in the order of the course
    for name in sorted(faces(), key=lambda name: order(f"`{name}`")):
        said = re.split(r"\n\n|(?<=\.)\n", (getattr(widgets, name).__doc__ or "").strip())[0]
        link = f"[`widgets.{name}`](api/widgets.md#cfm_lite.widgets.{name})"
        parts.append(f"## {name.replace('_', ' ').capitalize()}")
        parts += [f"{' '.join(said.split())} {link}", mounted(name, f"explorer-{name}")]
    return "\n\n".join(parts) + "\n"


def faces() -> list[str]:
    """The names of all explorers."""
    return [name for name in widgets.__all__ if (explorers.STATIC / f"{name}.png").exists()]


def navigation() -> list[dict]:
    """Where each page stands. A new document of docs/ stands in the library's list by itself."""
    placed = ["course", "lab", "glossary", "paper_versus_here", "install"]
    course = ["docs/course.md", *_pages("notebooks", "[0-9]*.md")]
    plans = ["docs/teaching/README.md", *_pages("docs/teaching", "[0-9]*.md")]
    others = [p for p in _pages("docs", "*.md") if Path(p).stem not in placed and p not in course]
    names = [
        {f"The names: {g}": [f"api/{r}.md" for r in rooms]} for g, rooms in api.rooms().items()
    ]
    library = ["docs/install.md", *others, *names[1:], *names[:1], "api/commands.md"]
    about_data = ["docs/paper_versus_here.md", "data/README.md"]
    return [
        {"Start": "README.md"},
        {"Course": [*course, {"For teachers": plans}]},
        {"Explorers": "explorers.md"},
        {"Library": ["api/README.md", *library]},
        {"Lab": ["docs/lab.md", *_pages("data/results", "*.md"), *about_data]},
        {"Slides": "slides/README.md"},
        {"Glossary": "docs/glossary.md"},
        {"Project": ["CONTRIBUTING.md", "CHANGELOG.md", {"Licences of others": "THIRD_PARTY.txt"}]},
    ]


def third_party() -> str:
    """What the site holds of others: package, version, licence, place, and the licence's text."""
    parts = [
        "What this site holds of others, each with its licence. All else is cfm_lite's own: MIT.\n"
        "The decks in slides/ were built with Marp (MIT), and hold its player."
    ]
    for package, files in TAKEN.items():
        facts = json.loads((PACKAGES / package / "package.json").read_text(encoding="utf-8"))
        places = sorted({f"assets/{place}" for place in files.values()})
        text = next((PACKAGES / package).glob("LICEN[CS]E*")).read_text(encoding="utf-8")
        parts.append(_entry(package, facts["version"], facts["license"], ", ".join(places), text))
    for package in THEMES:
        found = metadata.metadata(package)
        licence = found.get("License-Expression") or found.get("License") or "see below"
        places = "assets/, search/ and the frame of every page"
        files = [
            f for f in metadata.files(package) or [] if re.match(r"LICEN[CS]E|COPYING", f.name)
        ]
        text = files[0].read_text() if files else ""
        parts.append(_entry(package, found["Version"], licence.splitlines()[0], places, text))
    return "\n\n".join(parts) + "\n"


def _entry(package: str, version: str, licence: str, places: str, text: str) -> str:
    rule = "=" * 78
    return f"{rule}\n{package} {version}: {licence}\nin {places}\n{rule}\n{text.strip()}"


def _found(patterns: tuple[str, ...]) -> Iterator[Path]:
    for pattern in patterns:
        yield from sorted(ROOT.glob(pattern))


def _place(path: Path) -> Path:
    place = PAGES / path.relative_to(ROOT)
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


def _pages(folder: str, pattern: str) -> list[str]:
    return [path.relative_to(PAGES).as_posix() for path in sorted((PAGES / folder).glob(pattern))]


if __name__ == "__main__":
    main()
