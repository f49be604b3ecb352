"""The example in CONTRIBUTING.md runs as printed and is what it says."""

import re
from pathlib import Path

import pytest
import torch

from cfm_lite import objective
from tests.networks import Tiny, same_parameters

TEXT = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
X1 = torch.randn(24, 2, generator=torch.Generator().manual_seed(5))
Y = torch.arange(24) % 3


@pytest.fixture
def names() -> dict:
    """What the first block defines."""
    found: dict = {"__name__": __name__}
    exec(BLOCKS[0], found)  # noqa: S102 (our own text)
    return found


def test_both_blocks_run_as_printed(names, capsys):
    exec(BLOCKS[1], names)  # noqa: S102
    assert {"flow_matching", "hard_repulsion"} <= set(eval(capsys.readouterr().out))  # noqa: S307


def test_the_term_fits_in_twenty_lines():
    code = BLOCKS[0][BLOCKS[0].index("@dataclass") :]
    assert len([line for line in code.splitlines() if line.strip()]) <= 20


def test_the_hardest_negative_is_no_farther_than_a_single_one(names):
    hard = (
        objective.fm(Tiny())
        .plus(names["HardRepulsion"](0.05, tries=8))
        .at(0, 0)(X1, Y)[1]["hard_repulsion"]
    )
    soft = (
        objective.fm(Tiny())
        .plus(names["HardRepulsion"](0.05, tries=1))
        .at(0, 0)(X1, Y)[1]["hard_repulsion"]
    )
    assert 0 < hard < soft


def test_weight_zero_is_plain_flow_matching(names):
    plain, hard = objective.fm(Tiny()), objective.fm(Tiny()).plus(names["HardRepulsion"](0.0))
    for built in (plain, hard):
        built.at(0, 0)(X1, Y)[0].backward()
    assert same_parameters(plain.model, hard.model)
    assert all(
        torch.equal(p.grad, q.grad)
        for p, q in zip(plain.model.parameters(), hard.model.parameters())
    )
