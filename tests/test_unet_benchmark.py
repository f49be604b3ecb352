"""The benchmarks of the U-Net themselves, tried with small batches and with our own network in place
of the other libraries': every row is there, and a training that was stopped is resumed.
"""

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from cfm_lite.engine import compiled
from cfm_lite.errors import CFMError
from cfm_lite.evaluate.judges import Judge
from cfm_lite.models import UNet
from tools.benchmarks import __main__ as main
from tools.benchmarks import unet, unet_quality
from tools.benchmarks.harness import CannotRun, Clock, NotRun, Row, Times


class Once(Clock):
    """Calls every side once; the seconds are made up: 1, 2, 3, ... in the order of the sides."""

    def __call__(self, sides, repeats=9, block=0.1):
        for side in sides.values():
            side()
        return Times({name: [float(i)] for i, name in enumerate(sides, 1)})


class TimeFirst(nn.Module):
    """Stands for torchcfm's network: it takes what that takes, and has ours inside."""

    def __init__(self, dim, num_channels, num_res_blocks, *, num_classes, **settings):
        super().__init__()
        assert (dim, num_classes, settings["class_cond"]) == ((1, 28, 28), 11, True)
        self.net = UNet(dim[1], dim[0], num_classes=num_classes - 1)

    def forward(self, t, x, y):
        return self.net(x, t, y)


class ThousandSteps(nn.Module):
    """Stands for diffusers' network, whose times run to 1,000 and whose output has a name."""

    def __init__(self, *, sample_size, in_channels, num_class_embeds, **settings):
        super().__init__()
        assert settings["out_channels"] == in_channels
        self.net = UNet(sample_size, in_channels, num_classes=num_class_embeds - 1)

    def forward(self, x, t, class_labels):
        return SimpleNamespace(sample=self.net(x, t / 1000, class_labels))


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    for name, kind in (
        ("torchcfm.models.unet", {"UNetModel": TimeFirst}),
        ("diffusers.models.unets.unet_2d", {"UNet2DModel": ThousandSteps}),
    ):
        module = ModuleType(name)
        module.__dict__.update(kind)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("cfm_lite.runs.recipe._cpu_has_bf16", lambda: False)
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    recipe = unet.RECIPE.changed(batch=2, shard=2, precision="float32")
    monkeypatch.setattr(unet, "RECIPE", recipe)
    monkeypatch.setattr(unet, "all_cores", torch.get_num_threads)
    monkeypatch.setattr(unet_quality, "all_cores", torch.get_num_threads)
    g = torch.Generator().manual_seed(0)
    x, y = torch.rand(40, 1, 28, 28, generator=g), torch.arange(40) % 10
    data = SimpleNamespace(x1=x, y=y, held_x1=x, shape=(1, 28, 28), num_classes=10)
    for name, value in {
        "RECIPE": recipe,
        "FOLDER": tmp_path,
        "PARTS": 2,
        "SAMPLES": 70,
        "STEPS": 1,
        "dataset": lambda name: data,
        "judge_for": Judge,
    }.items():
        monkeypatch.setattr(unet_quality, name, value)


def test_every_network_has_a_row_and_the_others_a_goal():
    rows = list(unet.rows(Once()))
    *others, last, alone = rows
    assert isinstance(alone, NotRun)  # one core
    rows.remove(alone)
    assert [row.name.partition(": over ")[2] for row in others] == list(unet.NAMES.values())
    assert [row.ratio for row in rows] == [2.0, 3.0, 4.0, 2.0]
    assert [row.goal for row in rows] == [1.0, 1.0, None, 1.0]
    assert all("batch 2" in row.note and "563,428 parameters" in row.note for row in others)
    assert last.name.startswith("U-Net, a compiled step, float32")
    assert last.note.startswith("the first compiled step takes")


def test_where_the_processor_has_bf16_its_rows_follow(monkeypatch):
    monkeypatch.setattr("cfm_lite.runs.recipe._cpu_has_bf16", lambda: True)
    precisions = [row.name.split(", ")[2] for row in [*unet.rows(Once())][:-1]]
    assert precisions == 4 * ["float32"] + 4 * ["bf16"]


def test_threads_are_set_back(monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr(unet, "all_cores", lambda: threads + 1)
    *rows, together = unet.rows(Once())
    assert sum(f", {threads + 1} threads:" in row.name for row in rows) == len(rows) / 2 == 4
    assert (
        together.name
        == f"U-Net, {threads + 1} processes of 1 thread, float32: over {threads + 1} threads"
    )
    assert together.times.keys() == {"processes", "threads"}
    assert torch.get_num_threads() == threads


def test_a_peer_that_is_not_there_is_told_and_the_others_are_measured(monkeypatch):
    def missing(module):
        raise CannotRun(f"needs {module}")

    monkeypatch.setattr(unet, "peer", missing)
    first, second, row, *_ = unet.rows(Once())
    assert isinstance(first, NotRun)
    assert str(second).startswith("diffusers' UNet2DModel: not run: needs diffusers")
    assert isinstance(row, Row)


def test_without_a_compiler_its_row_is_told_to_be_missing(monkeypatch):
    def lacking(graph, inputs):
        raise RuntimeError("no g++")

    monkeypatch.setattr(compiled, "BACKEND", lacking)
    *_, row, _ = unet.rows(Once())
    assert str(row).startswith("U-Net, a compiled step, float32, ")
    assert "not run: torch.compile does not work here" in str(row)


def test_networks_of_unequal_size_are_refused(monkeypatch):
    monkeypatch.setattr(unet, "SIT", unet.SIT.changed(depth=4))
    with pytest.raises(CFMError, match="differ by more than 5 %"):
        unet.networks()


def told(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_quality_trains_in_turn_tells_every_part_and_is_resumed(monkeypatch, capsys):
    monkeypatch.setattr(unet_quality, "REACHED", 1e9)
    clock = Once(seconds=0.02)
    rows = list(unet_quality.rows(clock))
    assert [row.goal for row in rows] == [0.5, 0.5, None]
    lines, order = told(capsys), ["ours", "torchcfm", "diffusers", "sit"]
    assert [line["network"] for line in lines] == 2 * order
    assert all(line["seconds"] > 0 and line["frechet"] > 0 for line in lines)
    assert [row.times["ours"] for row in rows] == [lines[0]["seconds"]] * 3
    again = list(unet_quality.rows(clock))  # all is done: nothing is trained
    assert told(capsys) == []
    assert again == rows
    monkeypatch.setattr(unet_quality, "PARTS", 3)  # and it can be trained on
    list(unet_quality.rows(clock))
    later = told(capsys)
    assert [line["network"] for line in later] == order
    assert all(new["step"] > old["step"] for new, old in zip(later, lines[4:]))


def test_the_rate_falls_with_the_seconds():
    model = unet.networks()[0]["ours"]
    training = unet_quality.Training("ours", model, unet_quality.dataset("mnist"), 100.0)
    rates = {}
    for training.spent in (0.0, 50.0, 75.0, 100.0, 101.0):
        rates[training.spent] = training.rate(10**6)
    assert rates == {0.0: 1.0, 50.0: 1.0, 75.0: 0.5, 100.0: 0.0, 101.0: 0.0}
    training.spent = 0.0
    assert training.rate(0) < training.rate(unet.RECIPE.warmup // 2) < 1.0


def test_the_time_to_the_goal_lies_between_two_measurements():
    assert unet_quality.reached([(10.0, 4.0), (20.0, 1.0)]) == pytest.approx(15.0)
    assert unet_quality.reached([(10.0, 1.5), (20.0, 1.0)]) == 10.0
    assert unet_quality.reached([(10.0, 4.0), (20.0, 3.0)]) is None


def test_a_peer_that_never_gets_there_has_all_its_seconds():
    ours, never = [(10.0, 4.0), (20.0, 1.0)], [(10.0, 9.0), (20.0, 8.0)]
    row = unet_quality.compared({"ours": ours, "torchcfm": never}, "torchcfm")
    assert isinstance(row, Row)
    assert row.ratio == pytest.approx(0.75)
    assert row.note.startswith("at most this: torchcfm does not get there")
    assert isinstance(unet_quality.compared({"ours": never, "torchcfm": ours}, "torchcfm"), NotRun)


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["toy", "--seconds", "60"], "--seconds is read by unet_quality alone"),
        (["unet_quality", "--seconds", "0"], "--seconds is 0"),
        (["unets"], "unet"),
    ],
)
def test_a_wrong_command_is_one_line(monkeypatch, capsys, argv, line):
    monkeypatch.setattr(sys, "argv", ["benchmarks", *argv])
    assert main.main() != 0
    (said,) = capsys.readouterr().err.splitlines()
    assert line in said


def test_what_takes_hours_runs_only_if_it_is_named(monkeypatch):
    ran = []
    monkeypatch.setattr(main, "_run", lambda name, clock, folder: ran.append((name, clock.seconds)))
    monkeypatch.setattr(sys, "argv", ["benchmarks"])
    main.main()
    assert [name for name, _ in ran] == list(main.NAMES)
    assert "unet" in main.NAMES
    monkeypatch.setattr(sys, "argv", ["benchmarks", "unet_quality", "--seconds", "60"])
    main.main()
    assert ran[-1] == ("unet_quality", 60.0)
