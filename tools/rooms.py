"""The diagram of the rooms in docs/architecture.md, drawn from the imports: python -m tools.rooms

A room is a file or a folder of cfm_lite. `GROUPS` is their order: a room imports only from rooms
above it (tests/test_imports.py).
"""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "cfm_lite"
PAGE = ROOT / "docs" / "architecture.md"

GROUPS = {
    "what all share": ["errors", "_internal"],
    "the ideas": [
        "paths",
        "draws",
        "perturbations",
        "negatives",
        "losses",
        "terms",
        "objective",
        "theory",
        "guidance",
        "samplers",
        "metrics",
        "methods",
    ],
    "the rooms that serve them": [
        "engine",
        "training",
        "models",
        "data",
        "runs",
        "evaluate",
        "pretrained",
        "viz",
    ],
    "what is built on them": ["widgets", "lab", "scale", "course", "demo", "cli"],
}
SHARED, *SHOWN = GROUPS
ORDER = [room for rooms in GROUPS.values() for room in rooms]


def room_of(path: Path) -> str:
    """The room that a file of the package belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """The rooms that a file imports anywhere, inside functions too."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):  # `from cfm_lite import X` names a room as well
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        parts = [name.split(".") for name in names]
        rooms |= {part[1] for part in parts if part[0] == "cfm_lite" and len(part) > 1}
    return rooms & set(ORDER)


def imports() -> dict[str, set[str]]:
    """{room: the rooms that its files import}, without itself and without the rooms that all
    share.
    """
    found: dict[str, set[str]] = {room: set() for room in ORDER if room not in GROUPS[SHARED]}
    for path in PACKAGE.rglob("*.py"):
        if room_of(path) in found:
            found[room_of(path)] |= imported(path) & set(found) - {room_of(path)}
    return found


def above(room: str, direct: dict[str, set[str]]) -> set[str]:
    """Every room that `room` needs, directly or through others."""
    return direct[room].union(*(above(other, direct) for other in direct[room]))


def diagram() -> str:
    """Mermaid's text: an arrow for each import that does not follow from others."""
    direct = imports()
    lines = ["flowchart BT"]
    for number, group in enumerate(SHOWN):
        rooms = [f"    {room}" for room in GROUPS[group]]
        lines += [f'  subgraph group{number}["{group}"]', *rooms, "  end"]
    for room, others in direct.items():
        through = set().union(*(above(other, direct) for other in others))
        lines += [f"  {room} --> {other}" for other in direct if other in others - through]
    return "\n".join(lines)


def drawn(page: str) -> str:
    """`page` with its first Mermaid block replaced by the diagram."""
    head, fence, rest = page.partition("```mermaid\n")
    _, end, tail = rest.partition("\n```")
    return head + fence + diagram() + end + tail


if __name__ == "__main__":
    PAGE.write_text(drawn(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
