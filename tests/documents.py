"""The code blocks of the documents, and which test runs each: what stands in a document is tried as
it stands.
"""

import functools
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
_INDENTED = re.compile(r"(?:^ {4}\S.*\n)+", re.MULTILINE)

RUN: dict[str, tuple[str, ...]] = {
    # the blocks of each document in their order, and the test that runs each
    "README.md": (
        "tests/test_documents.py::test_the_twelve_lines_learn_the_data_that_they_were_given",
    ),
    "docs/imagenet.md": (
        "tests/scale/test_documents.py::test_the_commands_for_imagenet_go_from_images_to_a_score",
        "tests/scale/test_slurm.py::test_the_recipe_starts_saves_at_term_goes_on_and_ends_where_an_unbroken_run_does",
    ),
    "docs/captions.md": ("tests/scale/test_mscoco.py::test_two_ranks_do_what_one_process_does",),
    "docs/lab.md": (
        "tests/scale/test_documents.py::test_the_commands_of_the_lab_list_measure_and_report",
    ),
    "docs/architecture.md": (
        "tests/test_rooms.py::test_the_picture_is_that_of_the_imports",
        "tests/test_rooms.py::test_the_step_runs_through_the_functions_that_the_page_names",
    ),
    "docs/own_network.md": (
        *4
        * (
            "tests/test_own_network_guide.py::test_a_network_of_another_library_trains_and_is_sampled",
        ),
        "tests/test_own_network_guide.py::test_the_block_that_trains_runs_as_printed",
        "tests/test_own_network_guide.py::test_a_network_of_captions_drops_them_and_moves_away_from_a_negative_prompt",
        "tests/test_own_network_guide.py::test_eight_gaussians_flow_to_two_moons",
        "tests/test_own_network_guide.py::test_transport_inside_a_class_keeps_the_noise_of_a_class_and_shortens_its_way",
        "tests/test_own_network_guide.py::test_predictions_of_data_and_of_noise_become_velocities",
    ),
    "CONTRIBUTING.md": (
        "tests/test_contributing.py::test_both_blocks_run_as_printed",
        "tests/test_contributing.py::test_both_blocks_run_as_printed",
        "tests/scale/test_new_method.py::test_one_entry_is_trained_compared_drawn_and_listed",
    ),
}


class Block(NamedTuple):
    """One fenced block: its language, as written, and its text."""

    language: str
    text: str


def documents() -> list[str]:
    """Every document of the project, as a path below its root; reports that a program writes are
    not among them.
    """
    found = [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *(ROOT / name / "README.md" for name in ("data", "slides", "notebooks")),
    ]
    return sorted(path.relative_to(ROOT).as_posix() for path in found if path.is_file())


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(document: str) -> list[Block]:
    """The fenced blocks of a document, in their order."""
    return [Block(match[2], match[3]) for match in _FENCE.finditer(read(document))]


def command_lines(document: str) -> list[str]:
    """What a reader may type: lines of shell blocks, of indented blocks, and code between
    backquotes that starts with a command.
    """
    text = _FENCE.sub("", read(document))
    fenced = [block.text for block in blocks(document) if block.language in ("bash", "sh", "shell")]
    inline = re.findall(r"`([^`]+)`", text)
    lines = "\n".join([*fenced, *_INDENTED.findall(text)]).replace("\\\n", " ").splitlines()
    return [re.sub(r"\s+#.*$", "", " ".join(line.split())) for line in [*lines, *inline]]


class Node(dict[str, Any]):
    """A part of a notebook, whose keys are attributes too."""

    __getattr__ = dict.__getitem__


@functools.cache
def notebook(path: Path) -> Node:
    """The notebook at `path` as nbformat reads it, which takes seconds to import and checks it each
    time; read once, so nobody may change it.
    """

    def whole(part: dict[str, Any]) -> Node:
        texts = {
            name: "".join(value)
            for name, value in part.items()
            if isinstance(value, list) and (name in ("source", "text") or "/" in name)
        }
        return Node(part | texts)

    return json.loads(path.read_text(encoding="utf-8"), object_hook=whole)
