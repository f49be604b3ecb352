"""What the source must not hold: checks that python -O removes, and the number of ImageNet's
classes where data have others.
"""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent.parent / "cfm_lite"
FILES = sorted(PACKAGE.rglob("*.py"))
COUNTS = ("num_classes", "classes", "null", "label", "labels", "y")


def class_counts(tree: ast.AST) -> list[int]:
    """Lines where 1000 or 1001 is compared with, indexes, is given as a number of classes or a
    label, or fills a tensor.
    """
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare | ast.Subscript):
            parts = [*ast.iter_child_nodes(node)]
        elif isinstance(node, ast.Call):
            fills = ast.unparse(node.func).endswith(
                ("full", "full_like", "Embedding", "one_hot", "where", "masked_fill")
            )
            parts = [
                *(node.args if fills else ()),
                *(word.value for word in node.keywords if word.arg in COUNTS),
            ]
        elif isinstance(node, ast.Assign):
            parts = (
                [node.value]
                if any(
                    getattr(target, "id", getattr(target, "attr", "")) in COUNTS
                    for target in node.targets
                )
                else []
            )
        else:
            continue
        found += [
            part.lineno
            for part in parts
            if isinstance(part, ast.Constant) and part.value in (1000, 1001)
        ]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_check_is_lost_without_asserts_and_no_class_count_is_written_down(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    assert not [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and node.id == "__debug__"
    ]
    assert not class_counts(tree)


@pytest.mark.parametrize(
    "line",
    [
        "y == 1000",
        "table[1000]",
        "torch.full((n,), 1000)",
        "f(num_classes=1000)",
        "null = 1000",
        "self.null = 1000",
    ],
)
def test_the_search_finds_a_class_count(line):
    assert class_counts(ast.parse(line))
