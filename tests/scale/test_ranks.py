"""Several processes as one run: the same numbers, and an end for all when one of them is gone."""

import gc
import json
import os
import signal
import socket

import numpy as np
import pytest
import torch

from cfm_lite import cli
from cfm_lite.data import images
from cfm_lite.data.latents import Latents, prepare
from cfm_lite.engine import checkpoint
from cfm_lite.engine import parallel as distributed
from cfm_lite.engine.parallel import ALONE, joined, ranks_of_environment
from cfm_lite.errors import ConfigError, DiskFullError, DistributedError
from cfm_lite.runs.imagenet import build_imagenet_trainer, imagenet
from cfm_lite.scale.dry_run import Made
from cfm_lite.scale.sample import Settings, sample_imagenet
from cfm_lite.scale.train import Options, train_imagenet
from tests.logs import numbers
from tests.processes import eventually, ranks, reserved_port
from tests.scale.conftest import SMALL


def together(n, folder, work, **how):
    """`work(world)` on n forked ranks."""

    def start():
        with joined() as world:
            return work(world)

    return ranks([start] * n, folder, **how)


def done(started, seconds=60):
    assert started.wait(seconds) == [0] * len(started.children), "\n".join(started.texts())


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def train(data, out, recipe=SMALL, **how):
    def work(world):
        train_imagenet(
            recipe, data, Options(out, world=world, **({"log_every": 1, "progress": False} | how))
        )

    return work


@pytest.mark.parametrize(("n", "micro"), [(2, None), (2, 2), (4, None)])
def test_any_number_of_ranks_gives_the_loss_curve_of_one(data, run, tmp_path, n, micro):
    done(together(n, tmp_path, train(data, tmp_path / "run", micro_batch=micro)))
    assert losses(tmp_path / "run") == pytest.approx(losses(run), abs=1e-6)


@pytest.mark.parametrize("method", ["delta_fm", "dispersive"])
def test_every_term_is_the_same_on_two_ranks(data, tmp_path, method):
    recipe = imagenet(method, model="SiT-Ti/2", batch=8, shard=2, steps=4, size=32)
    done(together(2, tmp_path, train(data, tmp_path / "two", recipe)))
    train(data, tmp_path / "one", recipe)(ALONE)
    for a, b in zip(*[numbers(tmp_path / name) for name in ("one", "two")], strict=True):
        assert a == pytest.approx(b, abs=1e-6)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_run_goes_on_with_another_number_of_ranks(data, run, tmp_path, before, after):
    done(together(before, tmp_path, train(data, tmp_path / "run", SMALL.changed(steps=3))))
    done(together(after, tmp_path, train(data, tmp_path / "run", resume=True)))
    assert losses(tmp_path / "run") == pytest.approx(losses(run), abs=1e-6)
    ours, whole = (
        checkpoint.load(checkpoint.latest(folder / "checkpoints")).weights
        for folder in (tmp_path / "run", run)
    )
    for name, value in whole.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-5)


def test_gradients_of_two_ranks_are_the_mean_not_the_sum(tmp_path):
    """AdamW would hide a factor of two."""
    made, recipe = Made((4, 4, 4), 3), SMALL
    x, y = torch.randn(8, 4, 4, 4), torch.arange(8) % 3

    def work(world):
        trainer = build_imagenet_trainer(recipe, made, world=world)
        rows = slice(world.rank * 8 // world.size, (world.rank + 1) * 8 // world.size)
        trainer._backward((x[rows], y[rows]))
        if world.is_main:
            torch.save([p.grad for p in trainer.parameters], tmp_path / f"{world.size}.pt")

    done(together(2, tmp_path, work))
    work(ALONE)
    one, two = (torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in (1, 2))
    for a, b in zip(one, two):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert max(g.abs().max() for g in one) > 1e-3


def test_gradients_are_exchanged_once_a_batch(tmp_path, monkeypatch):
    made, recipe = Made((4, 4, 4), 3), SMALL.changed(accumulate=2)

    def work(world):
        trainer = build_imagenet_trainer(recipe, made, world=world)
        calls = []

        def hook(state, bucket):
            calls.append(1)
            future = torch.futures.Future()
            future.set_result(bucket.buffer())
            return future

        trainer._wrapped.register_comm_hook(None, hook)  # pyright: ignore
        trainer._backward((torch.randn(4, 4, 4, 4), torch.arange(4) % 3))
        once = len(calls)
        trainer._backward((torch.randn(4, 4, 4, 4), torch.arange(4) % 3))
        (tmp_path / f"{world.rank}.txt").write_text(f"{once} {len(calls) - once}")

    done(together(2, tmp_path, work))
    first, second = (tmp_path / "0.txt").read_text().split()
    assert first == second == "1"  # one bucket holds the tiny model


def test_more_ranks_than_shards_is_one_line(data, tmp_path):
    started = together(2, tmp_path, train(data, tmp_path / "run", SMALL.changed(batch=6)))
    assert started.wait() == [99, 99]
    assert "cannot be dealt to 2 ranks in whole shards of 2" in started.texts()[0]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_the_other_and_the_checkpoint_stays(data, tmp_path, victim):
    out = tmp_path / "run"
    argv = [
        "scale",
        "train",
        "--model",
        "SiT-Ti/2",
        "--method",
        "vecor",
        "--latents",
        str(data.folder),
        "--out",
        str(out),
    ]
    argv += [
        "--batch",
        "8",
        "--set",
        "shard=2",
        "--steps",
        "100000",
        "--save-every",
        "5",
        "--log-every",
        "5",
    ]
    started = ranks([lambda: cli.main(argv)] * 2, tmp_path)
    with eventually(40) as wait:
        wait(lambda: list((out / "checkpoints").glob("step-*")))
    started.kill(victim)
    codes = started.wait(30)
    assert codes[victim] == -signal.SIGKILL
    assert codes[1 - victim] == 7
    assert "lost the others" in started.texts()[1 - victim]
    assert "--resume starts from it" in started.texts()[1 - victim]
    step = checkpoint.load(checkpoint.latest(out / "checkpoints")).step
    argv[argv.index("100000")] = str(step + 2)
    assert cli.main([*argv, "--resume"]) == 0


def test_a_stop_request_to_one_rank_saves_once_and_ends_both(data, tmp_path):
    out = tmp_path / "run"
    started = together(
        2, tmp_path, train(data, out, SMALL.changed(steps=100_000), save_every=10**6)
    )
    with eventually(40) as wait:
        wait(lambda: (out / "log.jsonl").exists() and len(losses(out)) > 2)
    started.kill(1, signal.SIGTERM)
    assert started.wait(30) == [143, 143]
    assert checkpoint.load(checkpoint.latest(out / "checkpoints")).step == len(losses(out))


def test_ranks_with_other_settings_or_data_do_not_start(data, tmp_path):
    def start(weight):
        def work():
            with joined() as world:
                train_imagenet(
                    SMALL.changed(weight=weight),
                    data,
                    Options(tmp_path / "run", world=world, progress=False),
                )

        return work

    started = ranks([start(0.05), start(0.06)], tmp_path)
    assert started.wait() == [99, 99]
    assert all("the run differs between rank 0 and rank 1" in text for text in started.texts())
    assert not (tmp_path / "run").exists()


def test_a_failure_of_rank_0_alone_ends_all(tmp_path):
    def work(world):
        def full():
            raise DiskFullError("no room")

        try:
            world.on_main(full)
        except DiskFullError:
            return 6
        except DistributedError as error:
            return 7 if "DiskFullError: no room" in str(error) else 98
        return 0

    assert together(2, tmp_path, work).wait() == [6, 7]


def test_what_is_not_finite_on_one_rank_stops_both_at_the_same_step(tmp_path):
    made = Made((4, 4, 4), 3)

    def work(world):
        trainer = build_imagenet_trainer(SMALL, made, world=world)
        x = torch.randn(4, 4, 4, 4)
        bad = torch.full_like(x, 1e30) if world.rank == 1 else x
        list(trainer.run([(b, torch.zeros(4, dtype=torch.long)) for b in (x, bad, x)], 3))

    started = together(2, tmp_path, work)
    assert started.wait() == [99, 99]
    assert all("not finite at step 2" in text for text in started.texts())


def test_a_model_that_outlives_its_world_never_waits_for_ever(tmp_path):
    ports = [reserved_port() for _ in range(20)]

    # without the reference to the group that `joined` keeps, one of the first few hangs
    def often():
        for port in ports:
            os.environ["MASTER_PORT"] = str(port)
            with joined() as world:
                model = world.wrap(torch.nn.Linear(3, 3))
                model(torch.ones(2, 3)).sum().backward()
                world.mean({"loss": torch.ones(()), "one": torch.ones(())})
            del model
            gc.collect()

    done(ranks([often] * 2, tmp_path))


def test_a_taken_port_is_one_line_and_exit_code_7(data, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        argv = [
            "scale",
            "train",
            "--latents",
            str(data.folder),
            "--batch",
            "8",
            "--model",
            "SiT-Ti/2",
            "--out",
            str(tmp_path / "run"),
        ]
        started = ranks(
            [lambda: cli.main(argv)] * 2, tmp_path, port=taken.getsockname()[1], timeout=3
        )
        assert started.wait(40) == [7, 7]
    assert all("Is the port taken" in text for text in started.texts())
    assert "[rank 1]" in started.texts()[1]


def test_a_rank_that_never_comes_ends_the_other_in_time(tmp_path):
    started = ranks([lambda: _join()], tmp_path, timeout=2, WORLD_SIZE="2")
    assert started.wait(30) == [99]
    assert "cannot join the others" in started.texts()[0]


def _join():
    with joined():
        pass


@pytest.mark.parametrize("n", [2, 3])
def test_any_number_of_ranks_draws_the_same_samples(run, tmp_path, n):
    settings = Settings(num=11, steps=3, batch=2)

    def work(world):
        sample_imagenet(run, tmp_path / "many", settings, world=world, progress=False)

    done(together(n, tmp_path, work))
    sample_imagenet(run, tmp_path / "one", settings, progress=False)
    many, one = (np.load(tmp_path / name / "samples.npz")["arr_0"] for name in ("many", "one"))
    assert np.array_equal(many, one)


def test_builders_at_the_same_time_write_one_set(pictures, codec, folder, tmp_path):
    def build(rank):
        return lambda: (
            prepare.prepare(
                images.find(pictures),
                tmp_path / "L",
                codec,
                size=32,
                rows=7,
                rank=rank,
                world=2,
                progress=False,
            )
            and 0
        )

    assert ranks([build(0), build(1)], tmp_path).wait() == [0, 0]
    assert Latents(tmp_path / "L").fingerprint == Latents(folder).fingerprint


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"RANK": "0"}, "WORLD_SIZE"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "whole numbers"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, r"\[0, 1\]"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a"}, "MASTER_PORT"),
    ],
)
def test_an_incomplete_environment_says_what_is_missing(monkeypatch, environment, words):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert ranks_of_environment() == (0, 1, 0)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DistributedError, match=words):
        ranks_of_environment()


def test_alone_nothing_is_exchanged():
    with joined() as world:
        assert world == ALONE
    assert ALONE.gather("x") == ["x"]
    assert ALONE.any(True)
    assert ALONE.on_main(lambda: 3) == 3
    assert ALONE.mean({"loss": torch.tensor(2.0)}) == {"loss": torch.tensor(2.0)}
    model = torch.nn.Linear(1, 1)
    assert ALONE.wrap(model) is model


def test_more_ranks_than_gpus_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="--nproc-per-node"):
        distributed.World(1, 2, 1).place(torch.device("cuda"))


def test_an_error_that_is_not_of_the_network_stays_what_it_is():
    with pytest.raises(RuntimeError, match="out of memory"), distributed.World(0, 2).watching():
        raise RuntimeError("CUDA out of memory")
