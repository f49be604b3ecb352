"""How the site reads the docstrings: doctests become blocks of code, and the short names that
signatures give to shapes are written out. mkdocstrings loads this file; it does not import
cfm_lite.
"""

import re
from collections.abc import Iterator
from typing import Any

import griffe

_STAR = re.compile(r"(?<![\w*`\\])\*(?=\w+[),\]])")  # *dims is not emphasis


def readable(text: str) -> str:
    """A docstring as Markdown: each doctest in a fence, and stars of shapes as they are written."""
    parts = re.split(r"\n\n+", text)
    for i, part in enumerate(parts):
        if part.startswith(">>> "):
            parts[i] = f"```pycon\n{part}\n```"
        elif not part.startswith("```"):
            parts[i] = _STAR.sub(r"\\*", part)
    return "\n\n".join(parts).replace("```\n\n```pycon\n", "\n")


def short_names(module: griffe.Module, found: dict[str, str]) -> dict[str, str]:
    """{full name: what it stands for} of the names that a module and its parts give to types, such
    as Batch = Float[Tensor, "batch *dims"]; `found` is filled in and returned.
    """
    for name, member in module.members.items():
        if isinstance(member, griffe.Module):
            short_names(member, found)
        elif isinstance(member, griffe.Attribute) and re.fullmatch(r"[A-Z][a-z]+\w*", name):
            text = str(member.value or "")
            if re.match(r"(Float|Integer|Bool|Callable)\[", text) or " | " in text:
                found[member.path] = text
    return found


def written_out(annotation: str, module: griffe.Module, known: dict[str, str]) -> str:
    """An annotation with every short name replaced by what it stands for, where it is defined."""

    def one(word: re.Match[str]) -> str:
        member = module.members.get(word[0])
        path = (
            member.target_path if isinstance(member, griffe.Alias) else f"{module.path}.{word[0]}"
        )
        if path not in known:
            return word[0]
        return written_out(known[path], module.modules_collection[path.rpartition(".")[0]], known)

    return re.sub(r"\b[A-Z]\w*\b(?!\[)", one, annotation)


class Docstrings(griffe.Extension):
    """Both changes, for every object of a package."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Make the docstring readable."""
        if obj.docstring:
            obj.docstring.value = readable(obj.docstring.value)

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Write short names out in every signature."""
        known = short_names(pkg, {})
        for function in _functions(pkg):
            module = function.module
            for parameter in function.parameters:
                if parameter.annotation is not None:
                    parameter.annotation = _changed(parameter.annotation, module, known)
            if function.returns is not None:
                function.returns = _changed(function.returns, module, known)


def _changed(annotation: Any, module: griffe.Module, known: dict[str, str]) -> Any:
    text = str(annotation)
    new = written_out(text, module, known)
    return annotation if new == text else new  # what stays keeps its links


def _functions(found: griffe.Object) -> Iterator[griffe.Function]:
    for member in found.members.values():
        if isinstance(member, griffe.Function):
            yield member
        elif isinstance(member, griffe.Module | griffe.Class):
            yield from _functions(member)
