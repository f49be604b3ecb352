"""The pages of the library's names, and of its commands: which names stand on which page. What is
said of a name is its docstring.
"""

import ast
import contextlib
import io
import os
import re
from pathlib import Path

from tools.rooms import GROUPS, PACKAGE

ALONE = ("_internal", "cli")  # no names for users; the commands have a page of their own
COMMANDS = ("demo", "train", "sample", "evaluate", "compare", "prepare", "export")
COMMANDS += ("scale prepare", "scale train", "scale sample", "scale export")


def names_of(path: Path) -> list[str]:
    """`__all__` of a file in the order of the definitions, read without importing the file."""
    names, place = [], {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            place[node.name] = node.lineno
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names = list(ast.literal_eval(node.value))
    return sorted(names, key=lambda name: place.get(name, 0))


def modules_of(room: str) -> dict[str, list[str]]:
    """{module: the names that it shows} of a room: its own, then those of its public files that are
    not shown yet.
    """
    folder = PACKAGE / room
    if not folder.is_dir():
        return {f"cfm_lite.{room}": names_of(PACKAGE / f"{room}.py")}
    found = {f"cfm_lite.{room}": names_of(folder / "__init__.py")}
    if room == "course":  # its files hold the answers of the exercises
        return found
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if not any(part.startswith("_") for part in parts):
            packages = (path.parents[i] / "__init__.py" for i in range(len(parts) - 1))
            seen = {name for above in packages if above != path for name in names_of(above)}
            names = [name for name in names_of(path) if name not in seen]
            if names:
                found[".".join(("cfm_lite", *parts))] = names
    return found


def rooms() -> dict[str, list[str]]:
    """{group: its rooms with a page}."""
    shown = {group: [r for r in found if r not in ALONE] for group, found in GROUPS.items()}
    return {group: found for group, found in shown.items() if found}


def page(room: str) -> str:
    """The page of one room, as mkdocstrings reads it."""
    parts = [f"# cfm_lite.{room}"]
    for module, names in modules_of(room).items():
        if names or not len(parts) > 1:
            shown = "".join(f"\n        - {name}" for name in names)
            root = "true" if module.count(".") > 1 else "false"
            options = f"      show_root_heading: {root}\n      show_root_toc_entry: {root}\n      members:{shown or ' []'}"
            parts.append(f"::: {module}\n    options:\n{options}")
    return "\n\n".join(parts) + "\n"


def first_sentence(room: str) -> str:
    """The first sentence of a room's docstring."""
    path = PACKAGE / room / "__init__.py" if (PACKAGE / room).is_dir() else PACKAGE / f"{room}.py"
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return re.split(r"(?<=\.)\s", " ".join(text.split()))[0].replace("|", r"\|")


def index() -> str:
    """The page that lists the rooms; docs/architecture.md says what each is for."""
    lines = ["# The library, name by name", ""]
    lines += [
        "What each room is for, and how they hang together: [the rooms](../docs/architecture.md)."
    ]
    for group, found in rooms().items():
        lines += ["", f"## {group.capitalize()}", "", "| room | |", "|---|---|"]
        lines += [f"| [`{room}`]({room}.md) | {first_sentence(room)} |" for room in found]
    return "\n".join([*lines, "", "On the command line: [the commands](commands.md)", ""])


def commands() -> str:
    """The page of the commands: the help of each, as the terminal prints it."""
    from cfm_lite import cli

    os.environ |= {"COLUMNS": "88", "NO_COLOR": "1", "TERM": "dumb"}
    parts = ["# The commands"]
    for command in COMMANDS:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            cli.main([*command.split(), "--help"])
        parts.append(f"## cfm-lite {command}\n\n~~~~ text\n{printed.getvalue().rstrip()}\n~~~~")
    return "\n\n".join(parts) + "\n"
