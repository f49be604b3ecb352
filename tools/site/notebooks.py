"""A notebook as a page of Markdown: its explorers alive, its pictures as files, its solutions
folded.
"""

import base64
import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cfm_lite.widgets import alive
from tools import address

FENCE = "~~~~"  # no output holds it


def written(name: str, notebook: Mapping[str, Any], into: Path) -> None:
    """Write the notebook NAME as INTO/NAME.md, with its pictures in INTO/NAME_files/."""
    into.mkdir(parents=True, exist_ok=True)
    pictures = into / f"{name}_files"
    title, *rest = _cells(alive(notebook, shared=False), name, pictures)
    links = [f"[Download this notebook]({name}.ipynb)"]
    if link := address.colab(f"{name}.ipynb", address.urls()):
        links.append(f"[Open it in Colab]({link})")
    links.append("Run it, and do its exercises: [the course](../docs/course.md)")
    top = ["---\nhide: [navigation]\n---", title, f"{' · '.join(links)}\n{{ .notebook-links }}"]
    if any("cfmLite.mount" in part for part in rest):
        top.append('<script src="../assets/explorers.js"></script>')
    page = "\n\n".join([*top, *rest])
    (into / f"{name}.md").write_text(page + "\n", encoding="utf-8")


def _cells(notebook: Mapping[str, Any], name: str, pictures: Path) -> list[str]:
    parts, heading = [], ""
    for cell in notebook["cells"]:
        text, tags = "".join(cell["source"]), cell["metadata"].get("tags", [])
        if cell["cell_type"] == "markdown":
            parts.append(for_the_site(text))
            found = re.findall(r"^#+ (.*)", text, re.MULTILINE)
            heading = found[-1] if found else heading
            continue
        if address.TAG in tags:
            continue
        code = f"{FENCE} python\n{text}\n{FENCE}"
        if "solution" in tags:
            code = f'<details class="solution" markdown="1"><summary>Solution</summary>\n\n{code}\n\n</details>'
        elif "exercise" in tags:
            code = f'<div class="exercise" markdown="1">\n\n{code}\n\n</div>'
        parts.append(code)
        parts += [_output(output, name, heading, pictures) for output in cell["outputs"]]
    return parts


def for_the_site(markdown: str) -> str:
    """Text of the repository as the site's Markdown: notebooks are pages, decks open in the browser,
    and what is folded may hold Markdown.

    >>> for_the_site("[next](01_paths.ipynb) <details><summary>a *b*</summary>")
    '[next](01_paths.md) <details markdown="1"><summary>a *b*</summary>'
    """
    text = re.sub(r"(\]\((?!http)[^()\s]*)\.ipynb\)", r"\1.md)", markdown)
    text = re.sub(r"(\]\()(\d\w+)\.pdf\)", r"\1\2.html) ([PDF](\2.pdf))", text)
    text = re.sub(r'(href="(?!http)[^"]*)\.ipynb"', r'\1.html"', text)
    text = re.sub(r"^<!-- /?\w+ -->\n", "\n", text, flags=re.MULTILINE)
    return text.replace("<details>", '<details markdown="1">')


def _output(output: Mapping[str, Any], name: str, heading: str, pictures: Path) -> str:
    """One output of a cell: an explorer, a picture, a table, a sentence or plain text."""
    if output["output_type"] == "stream":
        return _plain("".join(output["text"]))
    data = {kind: "".join(value) for kind, value in output["data"].items() if kind[-4:] != "json"}
    if "text/html" in data:
        return f'<div class="output">{data["text/html"]}</div>'
    if "text/markdown" in data:
        return f'<div class="output said" markdown="1">\n\n{data["text/markdown"]}\n\n</div>'
    if "image/png" in data:
        pictures.mkdir(exist_ok=True)
        place = pictures / f"{len(list(pictures.iterdir())) + 1:02d}.png"
        place.write_bytes(base64.b64decode(data["image/png"]))
        alt = html.escape(f"Figure of the section: {heading}").replace("[", "").replace("]", "")
        width = output.get("metadata", {}).get("image/png", {}).get("width")  # a film's
        wide = f" width={width}" if width else ""
        return f"![{alt}]({pictures.name}/{place.name}){{ .output loading=lazy{wide} }}"
    return _plain(data.get("text/plain", ""))


def _plain(text: str) -> str:
    return f'<div class="output" markdown="1">\n\n{FENCE} text\n{text.rstrip()}\n{FENCE}\n\n</div>'
