"""docs/moved.md is true: each new name imports or parses, and each old name is gone."""

import importlib
import re
import shlex
from typing import Any

import pytest

from cfm_lite import cli
from cfm_lite.cli.arguments import Common
from tests.documents import ROOT

TEXT = (ROOT / "docs" / "moved.md").read_text(encoding="utf-8")
PAIRS = re.findall(r"^\| `([^`]+)` \| `([^`]+)` \|$", TEXT, re.MULTILINE)
COMMANDS = [pair for pair in PAIRS if pair[0].startswith("cfm-lite")]
NAMES = [pair for pair in PAIRS if pair not in COMMANDS]


def module_of(name: str) -> str:
    """The longest part of a dotted name that is a module of the package; another tree that is
    installed beside it does not count.
    """
    parts = name.split(".")
    while parts:
        place = ROOT.joinpath(*parts)
        if place.with_suffix(".py").is_file() or (place / "__init__.py").is_file():
            break
        parts.pop()
    return ".".join(parts)


@pytest.mark.parametrize(("old", "new"), NAMES)
def test_a_new_name_is_there_and_the_old_one_is_gone(old, new):
    thing: Any = importlib.import_module(module_of(new))
    for part in new.removeprefix(module_of(new)).split(".")[1:]:
        thing = getattr(thing, part)
    there = module_of(old)
    missing = old.removeprefix(there).split(".")[1:]
    assert missing  # no module of that name
    assert missing[0] not in getattr(importlib.import_module(there), "__all__", ()) or there == (
        "cfm_lite.widgets"  # a file gave way to the function of its name
    )


@pytest.mark.parametrize(("old", "new"), COMMANDS)
def test_a_new_command_line_is_taken_and_the_old_one_is_one_line_with_exit_code_two(
    old, new, monkeypatch, capsys
):
    monkeypatch.setattr(Common, "run", lambda self: None)
    assert cli.main(shlex.split(new)[1:]) == 0
    try:
        code = cli.main(shlex.split(old)[1:])
    except SystemExit as stop:
        code = stop.code
    said = capsys.readouterr().err
    assert code == 2
    assert said.count("\n") == 1
    if "imagenet" in old:
        assert new in said  # it can be copied from the message


def test_the_tables_are_long_enough_to_be_those_of_the_whole_move():
    assert len(NAMES) > 40
    assert len(COMMANDS) >= 6


def test_a_plain_command_shows_no_more_options_than_a_reader_takes_in(capsys):
    """At most 15, and none of them for ImageNet alone."""
    for command in ("demo", "train", "sample", "evaluate", "compare", "prepare", "export"):
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        shown = set(re.findall(r"^│ (?:-h, )?(--[\w-]+)", capsys.readouterr().out, re.MULTILINE))
        assert len(shown - {"--help"}) <= 15, command
        assert not shown & {"--latents", "--vae", "--micro-batch", "--parallel", "--dry-run"}
