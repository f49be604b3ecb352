"""The part of a notebook that some cells need: those cells, and before them every cell that gives a
name that they use.
"""

import ast
import builtins
from collections.abc import Iterable
from typing import Any


def tree(source: str) -> ast.Module:
    """The Python of a cell, without lines that belong to IPython."""
    lines = source.splitlines()
    return ast.parse(
        "\n".join("pass" if line.lstrip().startswith(("%", "!")) else line for line in lines)
    )


def bound(source: str) -> set[str]:
    """The names that a cell gives to later cells."""
    found: set[str] = set()
    for node in _outer(tree(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


def used(source: str) -> set[str]:
    """The names that a cell reads, wherever in it."""
    names = [node for node in ast.walk(tree(source)) if isinstance(node, ast.Name)]
    return {node.id for node in names if not isinstance(node.ctx, ast.Store)} - set(dir(builtins))


def asked(source: str) -> set[str]:
    """The names that a cell reads before it binds them, statement by statement."""
    return _asked(tree(source).body, set())


def _asked(statements: list[ast.stmt], own: set[str]) -> set[str]:
    """The same of some statements, after those that bound `own`, which grows."""
    found: set[str] = set()
    for statement in statements:
        text = ast.unparse(statement)
        parts = [getattr(statement, part, []) for part in ("body", "orelse", "finalbody")]
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            found |= free(text) - own
            own.add(statement.name)
        elif any(parts):  # a loop, a condition: its head, and then what it holds
            heads = [getattr(statement, part, None) for part in ("iter", "test")]
            heads += [item.context_expr for item in getattr(statement, "items", [])]
            found |= {name for head in heads if head for name in used(ast.unparse(head))} - own
            if isinstance(statement, ast.For):
                own |= bound(f"{ast.unparse(statement.target)} = 0")
            own |= {
                name
                for item in getattr(statement, "items", [])
                if item.optional_vars
                for name in bound(f"{ast.unparse(item.optional_vars)} = 0")
            }
            for part in parts:
                found |= _asked(part, own)
            for handler in getattr(statement, "handlers", []):
                found |= _asked(handler.body, own)
        else:
            found |= used(text) - _inner(statement) - own
            own |= bound(text)
    return found


def free(source: str) -> set[str]:
    """The names that a cell reads and binds nowhere, not even as a parameter."""
    nodes = list(ast.walk(tree(source)))
    own = {node.arg for node in nodes if isinstance(node, ast.arg)} | bound(source)
    own |= {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return used(source) - own


def _inner(statement: ast.stmt) -> set[str]:
    """The names of a statement that only its comprehensions bind."""
    return {
        name.id
        for node in ast.walk(statement)
        if isinstance(node, ast.comprehension)
        for name in ast.walk(node.target)
        if isinstance(name, ast.Name)
    } - bound(ast.unparse(statement))


def _outer(module: ast.Module) -> Iterable[ast.AST]:
    """The nodes of a module outside functions, classes and comprehensions."""
    waiting: list[ast.AST] = [module]
    closed = (ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.ListComp, ast.SetComp)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, (*closed, ast.DictComp, ast.GeneratorExp)):
            waiting += ast.iter_child_nodes(node)


def needed(cells: list[str], wanted: Iterable[int]) -> list[int]:
    """The places of `wanted` and of all cells before them whose names they use, in order."""
    keep: set[int] = set()
    waiting = sorted(set(wanted), reverse=True)
    while waiting:
        place = waiting.pop()
        if place in keep:
            continue
        keep.add(place)
        open_names = asked(cells[place])
        for before in range(place - 1, -1, -1):
            if open_names & bound(cells[before]):
                waiting.append(before)
                # a cell that only changes a name further does not end the search for its maker
                open_names -= bound(cells[before]) - used(cells[before])
    return sorted(keep)


def run(cells: list[str], places: Iterable[int]) -> dict[str, Any]:
    """The names that the cells at `places` leave behind, in one process."""
    space: dict[str, Any] = {"__name__": "__main__"}
    for place in places:
        code = compile(ast.fix_missing_locations(tree(cells[place])), f"cell {place}", "exec")
        exec(code, space)  # noqa: S102
    return space
