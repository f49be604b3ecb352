"""The example in CONTRIBUTING.md runs as printed and is what it says."""

import re
from pathlib import Path

import pytest
import torch

from cfm_lite import methods, objective
from cfm_lite.data.datasets import dataset
from cfm_lite.negatives import in_batch
from cfm_lite.paths import LINEAR, FlowSample
from cfm_lite.runs.recipe import Recipe
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


@pytest.fixture
def mean_fm() -> methods.Method:
    """The entry of the third block, in a table of its own."""
    table = vars(methods) | {"METHODS": {}}
    exec(BLOCKS[2], table)  # noqa: S102
    return table["METHODS"]["mean_fm"]


def test_the_mean_of_the_other_rows_is_the_mean_of_what_is_drawn(mean_fm):
    (term,) = mean_fm.terms(Recipe(weight=0.3), methods.Needed())
    x0, t = (
        torch.randn(X1.shape, generator=torch.Generator().manual_seed(1)),
        torch.full((24,), 0.4),
    )
    sample = FlowSample(x0, X1, t, *LINEAR.interpolate(x0, X1, t), Y)
    generator = torch.Generator().manual_seed(2)
    drawn = torch.stack([in_batch(sample, generator=generator) for _ in range(4000)])
    torch.testing.assert_close(term.negatives(sample), drawn.mean(0), atol=0.1, rtol=0)
    two = FlowSample(*(part[:2] for part in sample))
    assert torch.equal(term.negatives(two), in_batch(two))  # of two rows the other one is the mean
    assert term.weight == 0.3


def test_its_control_and_its_way_back_are_those_of_delta_fm(mean_fm):
    theirs, data, recipe = methods.METHODS["delta_fm"], dataset("two_classes", points=50), Recipe()
    x, t = torch.randn(5, 2), torch.full((5,), 0.5)
    for mine, other in ((mean_fm.control, theirs.control), (mean_fm.debias, theirs.debias)):
        v, u = (arm(lambda x, t: x.sin(), recipe, data)(x, t) for arm in (mine, other))
        assert torch.equal(v, u)
    there = mean_fm.control(lambda x, t: x.sin(), recipe, data)
    torch.testing.assert_close(mean_fm.debias(there, recipe, data)(x, t), x.sin())
