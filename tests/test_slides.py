"""The slides: complete, not stale, readable without a network, and no number that nothing stands
behind. Needs no node, no browser.
"""

import json
import re
import zlib
from pathlib import Path

import pytest

from cfm_lite import lab as experiments
from slides import build

ROOT = Path(__file__).parent.parent
NAMES = [
    "1_paths_and_flow_matching",
    "2_attract_and_repel",
    "3_dispersive_and_repa",
    "4_sampling",
    "5_scale",
    "6_pictures_from_words",
]
DECKS = [build.HERE / f"{name}.md" for name in NAMES]
every_deck = pytest.mark.parametrize("deck", DECKS, ids=lambda deck: deck.stem)
COMMENT = re.compile(r"<!--(.*?)-->", re.DOTALL)


def source(deck: Path) -> str:
    return deck.read_text(encoding="utf-8")


def slides(deck: Path) -> list[str]:
    """The source of each slide, without the front matter."""
    body = source(deck).split("\n---\n", 1)[1]
    return re.split(r"\n\n---\n\n", body)


def notes(slide: str) -> str:
    return " ".join(
        text.strip() for text in COMMENT.findall(slide) if not text.strip().startswith("_")
    )


def unpacked(pdf: bytes) -> bytes:
    """A PDF with all compressed streams laid open."""
    parts = [pdf]
    for match in re.finditer(rb"stream\r?\n(.*?)endstream", pdf, re.DOTALL):
        try:
            parts.append(zlib.decompress(match[1]))
        except zlib.error:
            continue
    return b"\n".join(parts)


def test_there_is_one_deck_per_part():
    assert build.decks() == DECKS
    assert all(deck.with_suffix(kind).exists() for deck in DECKS for kind in (".html", ".pdf"))


@every_deck
def test_a_rule_between_slides_has_blank_lines_round_it(deck):
    lines = source(deck).splitlines()
    rules = [i for i, line in enumerate(lines) if line.strip() == "---"]
    assert rules[:1] == [0]
    assert lines[rules[1] + 1] == ""  # the end of the front matter
    assert all(lines[i - 1] == "" and lines[i + 1] == "" for i in rules[2:])


@every_deck
def test_source_html_and_pdf_have_the_same_number_of_slides_and_at_most_twenty(deck):
    count = len(slides(deck))
    page = deck.with_suffix(".html").read_text(encoding="utf-8")
    assert 12 <= count <= 20
    assert len(re.findall(r'<section [^>]*?id="\d+"', page)) == count
    assert (
        len(re.findall(rb"/Type\s*/Page\b(?!s)", unpacked(deck.with_suffix(".pdf").read_bytes())))
        == count
    )


@every_deck
def test_every_slide_has_a_title_a_source_and_speaker_notes(deck):
    for slide in slides(deck):
        titles = re.findall(r"^# (.+)$", slide, re.MULTILINE)
        assert len(titles) == 1
        assert re.search(r"^> \S", slide, re.MULTILINE), titles
        assert len(notes(slide)) > 60, titles


@every_deck
def test_titles_fit_on_one_line(deck):
    titles = [re.findall(r"^# (.+)$", slide, re.MULTILINE)[0] for slide in slides(deck)]
    assert [title for title in titles if len(title) > 56] == []


def test_every_picture_is_there_and_shown():
    wanted = {path for deck in DECKS for path in build.images(source(deck))}
    assert wanted == {path for path in (build.HERE / "img").iterdir()}
    assert all(path.stat().st_size > 1000 for path in wanted)


@every_deck
def test_the_html_asks_the_network_and_the_disk_for_nothing(deck):
    page = deck.with_suffix(".html").read_text(encoding="utf-8")
    tags = re.findall(r"<(?:img|script|link|iframe|source|video|use|image|a)\b[^>]*>", page)
    addresses = [
        address
        for tag in tags
        for address in re.findall(r'(?:src|href|xlink:href|srcset)="([^"]*)"', tag)
    ]
    assert [address[:80] for address in addresses if not address.startswith(("data:", "#"))] == []
    assert sum(address.startswith("data:image/") for address in addresses) >= len(
        build.images(source(deck))
    )
    styles = re.findall(
        r"url\(\s*(?:&quot;|[\"'])?([^)\s]{1,30})", re.sub(r'src="data:[^"]*"', "", page)
    )
    assert [address for address in styles if not address.startswith(("data:", "#"))] == []
    assert "@import" not in page


@every_deck
def test_no_local_path_is_left_in_a_build(deck):
    built = unpacked(deck.with_suffix(".pdf").read_bytes()) + deck.with_suffix(".html").read_bytes()
    assert b"file:" not in built
    assert str(ROOT).encode() not in built


@every_deck
def test_builds_are_small_enough(deck):
    assert deck.with_suffix(".html").stat().st_size <= 2_000_000
    assert deck.with_suffix(".pdf").stat().st_size <= 1_000_000


@every_deck
def test_measured_numbers_are_those_of_the_result_files(deck):
    assert build.filled(source(deck)) == source(deck), "make slides fills them in"


@every_deck
def test_every_other_decimal_number_is_a_setting_or_cites_a_source(deck):
    for slide in slides(deck):
        text = build.NUMBER.sub("", slide)
        text = re.sub(
            r"\$\$.*?\$\$|\$[^$\n]*\$|```.*?```|`[^`\n]*`|!\[[^\]]*\]\([^)]*\)",
            "",
            text,
            flags=re.DOTALL,
        )
        text = re.sub(r"arXiv:\d+\.\d+", "arXiv", text)
        settings = re.sub(r"(?:\bt|λ|τ|[Ss]cale|weight|within|point|1 −)\D{0,9}\d+\.\d+", "", text)
        loose = re.findall(r"\d+\.\d+", settings)
        assert not loose or re.search(r"arXiv|et al\.|README|SiT issue|arithmetic", text), (
            loose,
            slide[:200],
        )


@pytest.mark.parametrize(
    "reference",
    ["demo fm frechet .2f", "demo fm no_such_metric .2f", "demo nobody frechet nfe=50 .2f"],
)
def test_a_number_that_fits_no_row_or_several_is_refused(reference):
    with pytest.raises(ValueError, match="fits"):
        build.number(reference)


def test_a_number_follows_its_row():
    rows = json.loads((build.RESULTS / "demo.json").read_text(encoding="utf-8"))
    value = next(
        row["value"]
        for row in rows
        if (row["method"], row["metric"], row["nfe"]) == ("fm", "frechet", 50)
    )
    stale = '<data value="demo fm frechet nfe=50 .4f">9.9999</data>'
    assert build.filled(stale) == f'<data value="demo fm frechet nfe=50 .4f">{value:.4f}</data>'


def test_of_several_seeds_the_mean_their_number_the_difference_and_the_verdict_are_those_of_the_lab():
    rows = json.loads((build.RESULTS / "digits.json").read_text(encoding="utf-8"))
    found = {d.method: d for d in experiments.differences(rows, "frechet", 50)}["dispersive"]
    place = "digits dispersive frechet nfe=50"
    assert build.number(f"{place} of=seeds d") == str(found.seeds)
    assert build.number(
        f"{place} of=difference +.2f"
    ) == f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]".replace("-", "−")
    assert build.number(f"{place} less=dispersive of=difference +.2f") == "+0.00 [+0.00, +0.00]"
    values = [
        row["value"]
        for row in rows
        if (row["method"], row["metric"], row["nfe"]) == ("dispersive", "frechet", 50)
    ]
    assert build.number(f"{place} of=mean .4f") == f"{sum(values) / len(values):.4f}"
    with pytest.raises(ValueError, match="say of=mean"):
        build.number(f"{place} .2f")


def test_the_title_on_narrow_networks_is_true_of_the_rows():
    assert "# Where the gain is large, a longer velocity is enough" in source(
        next(deck for deck in DECKS if deck.stem.startswith("4_"))
    )
    place = "digits.size {} frechet nfe=50 variant=hidden_size=64 of={} {}"
    assert (
        build.number(place.format("delta_fm", "verdict", "s"))
        == build.number(place.format("fm_scaled", "verdict", "s"))
        == "gains"
    )
    delta, scaled, fm = (
        float(build.number(place.format(name, "mean", ".6f")))
        for name in ("delta_fm", "fm_scaled", "fm")
    )
    assert scaled <= delta < 0.8 * fm


def test_the_title_on_the_dispersive_loss_is_true_of_the_rows():
    assert "# On digits it does not make better samples" in source(
        next(deck for deck in DECKS if deck.stem.startswith("3_"))
    )
    assert build.number("digits dispersive frechet nfe=50 of=verdict s") != "gains"


@every_deck
def test_the_builds_are_those_of_these_sources(deck):
    noted = json.loads(build.MANIFEST.read_text(encoding="utf-8"))[deck.stem]
    assert noted["source"] == build.source_digest(deck), (
        "the deck, its theme or a picture changed: make slides"
    )
    assert noted["html"] == build.digest(deck.with_suffix(".html").read_bytes())
    assert noted["pdf"] == build.digest(deck.with_suffix(".pdf").read_bytes())


@pytest.mark.parametrize("part", ["text", "theme", "picture"])
def test_a_change_of_any_source_makes_a_build_stale(part, tmp_path, monkeypatch):
    (tmp_path / "img").mkdir()
    files = {
        "text": tmp_path / "1_a.md",
        "theme": tmp_path / "theme.css",
        "picture": tmp_path / "img" / "a.svg",
    }
    for name, path in files.items():
        path.write_text("![a](img/a.svg)" if name == "text" else "old", encoding="utf-8")
    monkeypatch.setattr(build, "HERE", tmp_path)
    before = build.source_digest(files["text"])
    files[part].write_text(files[part].read_text(encoding="utf-8") + " new", encoding="utf-8")
    assert build.source_digest(files["text"]) != before


def test_marp_is_pinned():
    versions = json.loads((build.HERE / "package.json").read_text(encoding="utf-8"))[
        "devDependencies"
    ]
    assert re.fullmatch(r"\d+\.\d+\.\d+", versions["@marp-team/marp-cli"])
