"""What the documents say works: every block of code is run by a test, and every command line is one
that the program takes.
"""

import os
import re
import shlex

import pytest
import torch

from cfm_lite import cli, metrics
from cfm_lite.cli.arguments import Common
from cfm_lite.data import toy
from tests.documents import ROOT, RUN, blocks, command_lines, documents, read

ELLIPSIS = {"...", "RUN", "FILE", "SUITE"}  # stand for what the reader puts there


def test_every_block_of_code_is_run_by_a_test():
    found = {document: len(blocks(document)) for document in documents() if blocks(document)}
    assert found == {document: len(tests) for document, tests in RUN.items()}
    for name in {name for tests in RUN.values() for name in tests}:
        file, _, function = name.partition("::")
        assert f"def {function}(" in (ROOT / file).read_text(encoding="utf-8"), name


@pytest.mark.parametrize("seed", range(2))
def test_the_twelve_lines_learn_the_data_that_they_were_given(seed):
    """Two samples of the data have a distance of 0.02 to 0.33 (of twenty), and up to 0.6 % of class
    0 lie nearer to class 1.
    """
    code = blocks("README.md")[0].text
    assert (
        len(
            [
                line
                for line in code.splitlines()
                if line.strip() and not line.startswith(("import", "from"))
            ]
        )
        <= 12
    )
    torch.manual_seed(seed)
    names: dict = {}
    exec(code, names)  # noqa: S102 (our own text)
    points = names["points"]
    fresh, label = toy.two_classes(20_000, generator=torch.Generator().manual_seed(77))
    own = fresh[label == 0][: len(points)]
    assert points.shape == (2000, 2)
    assert (
        metrics.sliced_wasserstein(points, own, generator=torch.Generator().manual_seed(3)) <= 0.3
    )
    nearest = torch.cdist(points, fresh).argmin(1)
    assert (label[nearest] == 1).double().mean() <= 0.05


def test_every_page_is_reached_by_links_from_the_readme():
    found, new = set(), {"README.md"}
    while new:
        found |= new
        links = {
            (ROOT / name).parent / link
            for name in new
            for link in re.findall(r"\]\(([\w./-]+\.md)", read(name))
        }
        new = {os.path.relpath(path, ROOT).replace(os.sep, "/") for path in links} - found
        new &= set(documents())
    assert {name for name in documents() if name.startswith("docs/")} <= found


@pytest.mark.parametrize("document", documents())
def test_every_make_target_in_a_document_is_one(document):
    targets = set(
        re.findall(
            r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
        )
    )
    asked = {
        word
        for line in command_lines(document)
        for word in re.findall(r"(?:^|\s)make ([a-z][a-z-]*)$", line)
    }
    assert asked <= targets


def test_every_variable_of_the_environment_that_the_package_reads_is_explained_and_no_other():
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "cfm_lite").rglob("*.py"))
    pages = "".join(read(name) for name in documents() if name.startswith(("README", "docs/")))
    told = set(re.findall(r"CFM_LITE_[A-Z_]+", pages))
    assert told == set(re.findall(r'"(CFM_LITE_[A-Z_]+)"', code))


def _words(line: str) -> list[str] | None:
    """The words behind cfm-lite, or behind torchrun ... -m cfm_lite.cli --; None for another
    command or one that is only hinted at.
    """
    try:
        words = shlex.split(line)
    except ValueError:
        return None
    at = [i for i, word in enumerate(words) if word.endswith("cfm-lite") or word == "cfm_lite.cli"]
    if not at or (words[0] != words[at[0]] and not words[0].startswith(("torchrun", "srun"))):
        return None
    rest = [word for word in words[at[0] + 1 :] if word != "--"]
    if not rest or ELLIPSIS & set(rest) or "|" in line or any("$" in word for word in rest):
        return None
    return rest


@pytest.mark.parametrize(
    "document",
    [name for name in documents() if name != "docs/moved.md"],  # old ones too: test_moved.py
)
def test_every_command_line_in_a_document_is_one_that_the_program_takes(
    document, monkeypatch, capsys
):
    """Read, not run: a flag that went away, or a value that is no longer allowed, stands out."""
    monkeypatch.setattr(Common, "run", lambda self: None)
    for line in command_lines(document):
        words = _words(line)
        if words:
            assert cli.main(words) == 0, line


def test_a_command_line_that_the_program_does_not_take_would_be_found(capsys):
    assert _words("cfm-lite train digits --methud fm") == ["train", "digits", "--methud", "fm"]
    with pytest.raises(SystemExit):
        cli.main(["train", "digits", "--methud", "fm"])
