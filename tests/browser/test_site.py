"""The site, opened from a disk as a reader opens it: every page, every link, the search, the
explorers, and nothing asked of any server.

CFM_LITE_SITE names a site that is built already; without it the tests build one (a minute or two).
Screenshots go to CFM_LITE_SHOTS (default: build/browser), to be looked at.
"""

import functools
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

import pytest

pytest.importorskip(
    "playwright", reason="not run: needs Chromium and Playwright, make test-browser"
)
pytest.importorskip("mkdocs", reason="not run: the site needs mkdocs, make test-browser")

from tests.browser import lab as labs
from tests.browser.drag import EXPLORER, drag
from tools.site import api
from tools.site.__main__ import faces

pytestmark = [pytest.mark.browser, pytest.mark.timeout(2400)]

SHOTS = Path(os.environ.get("CFM_LITE_SHOTS", labs.ROOT / "build" / "browser"))
PHONE, DESK = {"width": 360, "height": 740}, {"width": 1280, "height": 900}
LOOKED_AT = ("index", "docs/course", "notebooks/04_contrastive_flow_matching", "explorers",
             "api/losses", "data/results/index", "slides/index", "docs/glossary",
             "docs/architecture")  # fmt: skip
LINKS = """() => ({
  links: [...document.querySelectorAll("a[href], area[href]")].map(a => a.href),
  files: [...document.querySelectorAll("[src], link[href]")].map(e => e.src || e.href),
  ids: [...document.querySelectorAll("[id], a[name]")].map(e => e.id || e.name),
  wide: document.documentElement.scrollWidth,
  formulas: document.querySelectorAll(".katex-error").length,
})"""


@functools.cache
def site() -> Path:
    if named := os.environ.get("CFM_LITE_SITE"):
        return Path(named).resolve()
    subprocess.run(["make", "site"], check=True, cwd=labs.ROOT)
    return labs.ROOT / "build" / "site"


@pytest.fixture(scope="module")
def chromium():
    with labs.browser() as opened:
        yield opened


def page_of(chromium, size, **options):
    """A page without a network, which notes what goes wrong and what it asks for."""
    context = chromium.new_context(viewport=size, offline=True, **options)
    page = context.new_page()
    page.set_default_timeout(120_000)  # a page with formulas and explorers, on busy cores
    page.wrong, page.asked = [], []
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on("console", lambda said: said.type == "error" and page.wrong.append(said.text))
    page.on("requestfailed", lambda asked: page.wrong.append(f"no answer: {asked.url}"))
    page.on("request", lambda asked: page.asked.append(asked.url))
    return page


@functools.cache
def crawled() -> dict[str, dict]:
    """{page: what it holds and what went wrong}, from the start page by links, on a phone."""
    found: dict[str, dict] = {}
    with labs.browser() as opened:
        page = page_of(opened, PHONE)
        todo = ["index.html"]
        for name in todo:
            page.wrong.clear()
            page.asked.clear()
            page.goto((site() / name).as_uri())
            page.wait_for_timeout(150)
            found[name] = page.evaluate(LINKS) | {"wrong": [*page.wrong], "asked": [*page.asked]}
            inside = (relative(link) for link in found[name]["links"])
            todo += sorted({p for p in inside if p and p.endswith(".html")} - set(todo))
    return found


def relative(address: str) -> str | None:
    """The path below the site of an address; None for one that is elsewhere."""
    path = Path(unquote(urlparse(address).path))
    inside = address.startswith("file:") and path.is_relative_to(site())
    return path.relative_to(site()).as_posix() if inside else None


def test_the_crawl_reaches_every_page():
    built = {path.relative_to(site()).as_posix() for path in site().rglob("*.html")}
    assert built - {"404.html"} == set(crawled())
    assert len(built) > 50


def test_no_page_says_an_error_or_asks_beyond_the_folder():
    wrong = {name: page["wrong"] for name, page in crawled().items() if page["wrong"]}
    assert wrong == {}
    beyond = {
        name: out
        for name, page in crawled().items()
        if (
            out := [
                u for u in page["asked"] if not u.startswith(("data:", "blob:")) and not relative(u)
            ]
        )
    }
    assert beyond == {}


def test_every_link_has_a_target_and_every_mark_is_on_its_page():
    broken = []
    for name, page in crawled().items():
        for address in {*page["links"], *page["files"]}:
            if urlparse(address).scheme in (
                "http",
                "https",
                "mailto",
                "data",
                "blob",
                "javascript",
            ):
                continue
            place = relative(address)
            if place is None or not (site() / place).is_file():
                broken.append((name, address))
            mark = unquote(urldefrag(address).fragment)
            if mark and place in crawled() and mark not in crawled()[place]["ids"]:
                broken.append((name, f"{place}#{mark}"))
    assert broken == []


def test_no_page_is_wider_than_a_phone_and_every_formula_is_drawn():
    pages = {name: page for name, page in crawled().items() if not name.startswith("slides/") or name.endswith("index.html")}  # fmt: skip
    assert {
        name: page["wide"] for name, page in pages.items() if page["wide"] > PHONE["width"]
    } == {}
    assert {name: page["formulas"] for name, page in pages.items() if page["formulas"]} == {}


def test_every_public_name_stands_on_the_page_of_its_room():
    missing = [
        f"{module}.{name}"
        for rooms in api.rooms().values()
        for room in rooms
        for module, names in api.modules_of(room).items()
        for name in names
        if f"{module}.{name}" not in crawled()[f"api/{room}.html"]["ids"]
    ]
    assert missing == []


def test_the_search_finds_a_name_and_a_sentence(chromium):
    page = page_of(chromium, DESK)
    page.goto((site() / "index.html").as_uri())
    for words, place in (("contrastive_flow_matching", "api/losses.html"), ("overshoots", ".html")):
        page.locator(".md-search__input").fill(words)
        page.wait_for_selector(f".md-search-result__item a[href*='{place}']")
    page.screenshot(path=SHOTS / "site-search.png")
    page.locator(".md-search-result__item a").first.click()
    page.wait_for_load_state()
    assert page.wrong == []


@pytest.mark.parametrize("name", ["index", "explorers"])
def test_the_explorers_of_the_site_are_alive(name, chromium):
    page = page_of(chromium, DESK)
    page.goto((site() / f"{name}.html").as_uri())
    page.wait_for_selector(f"{EXPLORER} canvas")
    count = page.locator(EXPLORER).count()
    assert count == (1 if name == "index" else len(faces()))
    for index in range(count):
        explorer = page.locator(EXPLORER).nth(index)
        explorer.scroll_into_view_if_needed()
        if not explorer.locator("input[type=range]").count():  # words: what is chosen is on a shelf
            assert explorer.locator("canvas").is_visible()
            continue
        seen = drag(page, index=index, positions=10, seconds=0.6, shots=1)
        assert seen.updates >= 1
    assert page.wrong == []


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_the_pages_are_photographed(size, chromium):
    SHOTS.mkdir(parents=True, exist_ok=True)
    page = page_of(chromium, size)
    for name in LOOKED_AT:
        page.goto((site() / f"{name}.html").as_uri())
        page.wait_for_timeout(600)
        page.screenshot(path=SHOTS / f"site-{name.replace('/', '-')}-{size['width']}.png")
    assert page.wrong == []


def test_third_party_names_every_foreign_file_and_its_licence():
    text = (site() / "THIRD_PARTY.txt").read_text(encoding="utf-8")
    for package in ("katex", "iframe-worker", "@mermaid-js/tiny", "inter", "mkdocs-material"):
        assert f"{package} " in text
    assert text.count("Permission is hereby granted") >= 4
    assert "SIL OPEN FONT LICENSE" in text.upper()
    assert sum(path.stat().st_size for path in site().rglob("*") if path.is_file()) <= 60_000_000


if __name__ == "__main__":  # what the crawl sees, to look at
    for name, page in crawled().items():
        print(name, page["wide"], page["wrong"], sys.getsizeof(page["links"]))
