"""docs/architecture.md tells the truth: its picture is that of the imports, its list has every room,
and its step runs through the functions that it names.
"""

import re
import sys
from pathlib import Path

from tests import documents
from tools import rooms

PAGE = rooms.PAGE.read_text(encoding="utf-8")


def table(header: str) -> list[list[str]]:
    """The cells of the table that begins with `header`, without backticks."""
    rows = PAGE.partition(header)[2].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip().strip("`") for cell in row.split(" | ")] for row in rows]


def test_the_picture_is_that_of_the_imports():
    assert rooms.drawn(PAGE) == PAGE, "run python -m tools.rooms"


def test_the_picture_leaves_out_what_follows_from_other_arrows(monkeypatch):
    direct = {"paths": set(), "draws": {"paths"}, "losses": {"draws", "paths"}}
    monkeypatch.setattr(rooms, "imports", lambda: direct)
    arrows = [line.strip() for line in rooms.diagram().splitlines() if "-->" in line]
    assert arrows == ["draws --> paths", "losses --> draws"]


def test_the_list_has_every_room_in_order():
    listed = [row[0].strip("| `") for row in table("| room | what it is for |")]
    assert listed == rooms.ORDER


def test_the_step_runs_through_the_functions_that_the_page_names():
    (block,) = (b for b in documents.blocks("docs/architecture.md") if b.language == "python")
    ran: list[tuple[str, str]] = []

    def record(frame, event, _):
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(rooms.PACKAGE):
            name = frame.f_code.co_qualname
            ran.append((path.relative_to(rooms.PACKAGE).as_posix(), name))

    namespace: dict = {}
    setup, loop, rest = block.text.partition("for log in")
    exec(setup, namespace)  # noqa: S102
    sys.setprofile(record)
    try:
        exec(loop + rest, namespace)  # noqa: S102
    finally:
        sys.setprofile(None)
    told = [(row[1], row[2]) for row in table("| | file | function | what happens |")]
    calls = list(dict.fromkeys(call for call in ran if call in told))
    assert calls == list(dict.fromkeys(told))
    opened = {file for file, _ in told}
    assert len(opened) == 6
    trusted = re.findall(r"`([\w/]+(?:\.py|/))`", PAGE.partition("The step also uses")[2])
    others = {file for file, _ in ran} - opened
    assert not [file for file in others if not file.startswith(tuple(trusted))]
