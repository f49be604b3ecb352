"""A compiled step is the eager one, and its graphs are few: one for all blocks, on one process,
under DDP and under FSDP.
"""

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from cfm_lite import objective
from cfm_lite.cli import ScaleTrain, Train, main
from cfm_lite.engine import compiled
from cfm_lite.errors import ConfigError
from cfm_lite.models import MLP, SiT
from cfm_lite.runs.recipe import build_model, build_trainer, recipe
from cfm_lite.training import Trainer
from tests.scale import graphs
from tests.test_step import batch, trainer

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:.*_prims_common.check.*:FutureWarning"
    ),  # raised inside torch's compiler
    pytest.mark.filterwarnings(
        "ignore:The .grad attribute of a Tensor:UserWarning"
    ),  # which it hides from everybody but pytest
    pytest.mark.timeout(300),
]
ROOT = Path(__file__).parents[2]
COMPILER = any(map(shutil.which, ("g++", "clang++")))


@pytest.fixture
def counter(monkeypatch):
    found = graphs.Counted()
    monkeypatch.setattr(compiled, "BACKEND", found)
    return found


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory):
    file = tmp_path_factory.mktemp("graphs") / "counts.json"
    words = [
        "-W",
        "ignore",
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "tests.scale.graphs",
        str(file),
    ]
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(file.read_text())


@pytest.mark.parametrize("case", [f"{parallel} {preset}" for parallel, preset, _ in graphs.CASES])
def test_two_ranks_make_one_graph_of_ten_blocks_with_no_break_and_none_again(on_two_ranks, case):
    """DDP alone would cut it where its buckets end: each block into two."""
    assert on_two_ranks[case] | {"losses": 0} == {
        "graphs": 1,
        "again": 0,
        "breaks": [],
        "losses": 0,
    }


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_network_without_transformer_blocks_is_compiled_once_on_two_ranks(on_two_ranks, parallel):
    found = on_two_ranks[f"{parallel} mlp"]
    assert found["again"] == 0
    assert found["graphs"] == 1 or parallel == "fsdp"
    assert all(0 < loss < 3 for loss in found["losses"])


@pytest.mark.parametrize("preset", ["repa_delta_fm", "dispersive"])
def test_one_process_makes_one_graph_of_ten_blocks_whatever_it_does(counter, preset):
    """Features, dropped labels, the average, another trainer on the network, checkpointing: no
    other graph; another batch: one.
    """
    small = {"hidden_size": 64, "accumulate": 2}
    built, data = graphs.built(preset, **small), graphs.batch(preset, graphs.ROWS)
    found = graphs.counts(built, data, counter)
    assert found | {"losses": 0} == {"graphs": 1, "again": 0, "breaks": [], "losses": 0}
    built.objective.model.checkpointing = True
    list(built.run([data], 1))
    again = Trainer(built.objective, compile=True, accumulate=2)
    list(again.run([data], 1))
    assert counter.graphs == 1
    built.accumulate = 1
    list(built.run([[part[:6] for part in data]] * 2, 2))
    assert (counter.graphs, counter.breaks) == (2, [])


def test_compiled_blocks_give_the_bits_of_eager_ones_where_the_compiler_changes_nothing(counter):
    """What is left to the compiler is arithmetic; batches, draws and gradients are not touched."""
    data = graphs.batch("vecor", graphs.ROWS)
    runs = [
        graphs.built("vecor", compile=how, hidden_size=64).run([data] * 2, 2)
        for how in (False, True)
    ]
    assert [{k: v.item() for k, v in log.items()} for log in runs[0]] == [
        {k: v.item() for k, v in log.items()} for log in runs[1]
    ]
    assert counter.graphs == 1


class Numbered(nn.Module):
    """A block that holds its number, so that no two of them share a graph."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number, self.layers = number, nn.Sequential(nn.Linear(2, 2), nn.SiLU())
        self.mlp = nn.Sequential(nn.Sequential(nn.Linear(2, 2)))

    def forward(self, h):
        return h + self.mlp(self.layers(h)) / (1 + self.number)


class Own(nn.Module):
    """An own network whose blocks stand one level down, as in a wrapper."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.net = nn.Module()
        self.net.blocks = nn.ModuleList([nn.ModuleList([Numbered(i)]) for i in range(depth)])

    def forward(self, x, t, y=None):
        for (block,) in self.net.blocks:
            x = block(x)
        return x


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_u_net_is_one_graph_with_its_losses(counter, precision):
    """Its draws stay outside, as they are everywhere."""
    rows, labels = torch.randn(8, 1, 28, 28), torch.arange(8)
    small = {"hidden_size": 8, "batch": 8, "shard": 8, "precision": precision}
    chosen = recipe("mnist", method="delta_fm", **small)
    model = build_model(chosen, SimpleNamespace(shape=(1, 28, 28), num_classes=10))
    found = graphs.counts(build_trainer(chosen, model, compile=True), (rows, labels), counter)
    assert (found["graphs"], found["again"]) == (1, 0)


def test_twelve_blocks_that_all_differ_are_all_compiled(counter):
    """torch gives a function up after eight graphs and runs it eagerly, with no more than a
    warning.
    """
    built = Trainer(objective.fm(Own(12)), compile=True)
    list(built.run([torch.randn(4, 2)] * 2, 2))
    assert counter.graphs == 12
    assert torch._dynamo.config.recompile_limit == 8
    assert torch._dynamo.config.optimize_ddp is True  # no setting of torch's is left changed


def test_names_copies_and_the_average_of_a_compiled_network_stay_plain(counter, tmp_path):
    built = graphs.built("sit", hidden_size=64)
    list(built.run([graphs.batch("sit", graphs.ROWS)], 1))
    plain = graphs.built("sit", hidden_size=64, compile=False)
    assert built.objective.state_dict().keys() == plain.objective.state_dict().keys()
    for model in (built.ema, copy.deepcopy(built.objective.model)):
        assert all(block._compiled_call_impl is None for block in model.blocks)
    plain.resume(built.save(tmp_path))


def test_only_the_outermost_lists_called_blocks_are_blocks():
    model, outer = nn.Module(), nn.Module()
    outer.blocks = nn.Sequential(nn.Linear(1, 1))
    model.blocks = nn.ModuleList([outer, nn.Linear(1, 1)])
    assert compiled.blocks_of(model) == [outer, model.blocks[1]]
    model.blocks = nn.TransformerEncoderLayer(4, 1)  # one module of that name, and no list
    assert compiled.blocks_of(model) == []


class Card:
    """A machine with a GPU, as far as the question goes whether to compile on it."""

    def __init__(self, monkeypatch, capability=(9, 0), triton=True, programs=("gcc", "g++")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(
            compiled.importlib.util, "find_spec", lambda name: object() if triton else None
        )
        monkeypatch.setattr(
            compiled.shutil, "which", lambda name: name if name in programs else None
        )
        for variable in ("CC", "CXX"):
            monkeypatch.delenv(variable, raising=False)


SIT, GPU, CPU = SiT(4, 2, 4, 16, 1, 1), torch.device("cuda"), torch.device("cpu")


@pytest.mark.parametrize(
    ("model", "device", "card", "expected"),
    [
        (SIT, GPU, {}, True),
        (SIT, CPU, {}, False),
        (MLP(2, 8, 2), GPU, {}, False),
        (Own(2), GPU, {}, True),
        (SIT, GPU, {"capability": (6, 1)}, False),
        (SIT, GPU, {"triton": False}, False),
        (SIT, GPU, {"programs": ()}, False),
    ],
)
def test_a_gpu_compiles_transformer_blocks_by_default_if_it_can(
    monkeypatch, model, device, card, expected
):
    Card(monkeypatch, **card)
    assert compiled.is_compiled(None, model, device) is expected
    assert compiled.is_compiled(False, model, device) is False


@pytest.mark.parametrize(
    ("device", "card", "word"),
    [(GPU, {"triton": False}, "triton"), (CPU, {"programs": ("gcc",)}, r"g\+\+")],
)
def test_a_compiler_that_is_asked_for_and_absent_is_one_line(monkeypatch, device, card, word):
    Card(monkeypatch, **card)
    with pytest.raises(ConfigError, match=word):
        compiled.is_compiled(True, SIT, device)


@pytest.mark.parametrize(
    ("words", "chosen"), [({}, None), ({"compile": True}, True), ({"no_compile": True}, False)]
)
@pytest.mark.parametrize("command", [Train, ScaleTrain])
def test_the_command_line_chooses_to_compile_or_not_or_leaves_it(command, words, chosen):
    assert command(**words).compiles is chosen


def test_both_choices_at_once_are_refused(capsys, tmp_path):
    argv = [
        "scale",
        "train",
        "--model",
        "SiT-Ti/2",
        "--method",
        "sit",
        "--dry-run",
        "--out",
        str(tmp_path / "run"),
    ]
    assert main([*argv, "--compile", "--no-compile"]) == 2
    assert "--no-compile" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def roughen(module):
    """Weights that are not 0 anywhere: else most gradients are nearly 0, and AdamW makes whole
    steps of their rounding.
    """
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn(p.shape, generator=g), alpha=0.05)


@pytest.mark.skipif(not COMPILER, reason="not run: torch.compile needs a C++ compiler")
@pytest.mark.parametrize(
    "preset", ["delta_fm", "dispersive", "repa_vecor"]
)  # every term; vecor's graph is delta_fm's, and holds sit's
def test_compiled_steps_agree_with_eager_ones_in_float32(preset):
    torch._dynamo.reset()
    data, logs, gradients = batch(preset), [], []
    for how in (False, True):
        built = trainer(preset, compile=how, depth=1, block=1, align_block=1)
        roughen(built.objective)
        steps = built.run([data] * 3, 3)
        log = [next(steps)]
        gradients.append(
            {
                name: p.grad.clone()
                for name, p in built.objective.named_parameters()
                if p.grad is not None
            }
        )
        logs.append(
            [{name: value.item() for name, value in each.items()} for each in [*log, *steps]]
        )
    for eager, other in zip(*logs):
        assert other == pytest.approx(eager, rel=1e-5, abs=1e-6)
    assert gradients[0].keys() == gradients[1].keys()
    for name, eager in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], eager, rtol=1e-4, atol=1e-6, msg=name)
