"""The public addresses, and what depends on them: python -m tools.address

They stand in one place, [project.urls] of pyproject.toml: Homepage is the site's, Repository that of
the code. Where one is missing nothing links to it. The command puts a link to Colab, and the cell
that installs the library there, into every notebook, or takes both out again.
"""

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
TAG = "colab"  # of the cell that this file writes
INSTALL = """\
# [Open this notebook in Colab]({link}). There, this cell installs the library; elsewhere it does nothing.
import importlib.util

if importlib.util.find_spec("cfm_lite") is None:
    %pip install --quiet "cfm-lite[notebooks] @ git+{repository}"
"""


def urls() -> dict[str, str]:
    """The addresses as pyproject.toml has them, without a slash at their end; {} without any."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {name: url.rstrip("/") for name, url in project.get("urls", {}).items() if url}


def colab(notebook: str, addresses: Mapping[str, str]) -> str:
    """Where Colab opens the file NOTEBOOK of notebooks/; "" unless the repository is on GitHub."""
    found = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+)", addresses.get("Repository", ""))
    if not found:
        return ""
    return f"https://colab.research.google.com/github/{found[1]}/blob/main/notebooks/{notebook}"


def addressed(name: str, notebook: dict[str, Any], addresses: Mapping[str, str]) -> dict[str, Any]:
    """`notebook` (its JSON) with the cell for Colab behind its title, or without one."""
    marked = [TAG in cell["metadata"].get("tags", []) for cell in notebook["cells"]]
    cells = [cell for cell, ours in zip(notebook["cells"], marked) if not ours]
    if link := colab(name, addresses):
        text = INSTALL.format(link=link, repository=addresses["Repository"])
        cell = {"cell_type": "code", "execution_count": None, "id": TAG, "outputs": []}
        cell |= notebook["cells"][marked.index(True)] if True in marked else {}
        cell |= {"metadata": {"tags": [TAG]}, "source": text.rstrip().splitlines(keepends=True)}
        cells.insert(1, cell)
    return notebook | {"cells": cells}


def main() -> None:
    """Write every notebook as the addresses ask for."""
    for path in sorted(NOTEBOOKS.glob("[0-9]*.ipynb")):
        text = path.read_text(encoding="utf-8")
        notebook = addressed(path.name, json.loads(text), urls())
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{path.name}: {colab(path.name, urls()) or 'no link: no Repository on GitHub'}")


if __name__ == "__main__":
    main()
