"""Sweeps that can be stopped, grown and run side by side: the files are those of a sweep that never
stopped, byte for byte.
"""

import json
import os
import signal
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from cfm_lite import cli
from cfm_lite import lab as experiments
from cfm_lite.data.shared import owned
from cfm_lite.errors import CFMError, ConfigError, DataError, DivergenceError
from cfm_lite.lab import jobs, workers
from tests.processes import forked

TINY = {"steps": 3, "hidden_size": 16, "batch": 32}
CORE = ("fm", "fm_scaled", "delta_fm")
pytestmark = pytest.mark.usefixtures("few_evaluations")


def sweep(out, **more):
    return experiments.compare(
        "toy",
        out=out,
        quick=True,
        progress=False,
        **{"seeds": (0, 1), "arms": CORE, "changes": TINY} | more,
    )["core"]


@pytest.fixture(scope="module")
def unbroken(few_evaluations, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken")
    return sweep(out), (out / "toy.json").read_bytes()


def counted(monkeypatch):
    calls, real = [], jobs.train
    monkeypatch.setattr(
        jobs,
        "train",
        lambda recipe, *a, **k: calls.append((recipe.method, recipe.seed)) or real(recipe, *a, **k),
    )
    return calls


def test_a_sweep_keeps_its_rows_and_does_not_run_them_again(tmp_path, unbroken, monkeypatch):
    calls = counted(monkeypatch)
    first = sweep(tmp_path, seeds=(0,))
    assert {row["method"] for row in first} == set(CORE)
    assert all(
        set(row) >= {"method", "dataset", "seed", "steps", "nfe", "sampler", "metric", "value"}
        for row in first
    )
    both = sweep(tmp_path)
    assert calls == [("fm", 0), ("delta_fm", 0), ("fm", 1), ("delta_fm", 1)]
    assert (both, (tmp_path / "toy.json").read_bytes()) == unbroken
    assert not (tmp_path / "toy.parts").exists()


def test_a_sweep_grown_by_arms_and_seeds_in_any_order_is_the_same_file(tmp_path, unbroken):
    sweep(tmp_path, seeds=(1,), arms=("delta_fm",))
    sweep(tmp_path, seeds=(0, 1), arms=("fm_scaled",))
    sweep(tmp_path)
    assert (tmp_path / "toy.json").read_bytes() == unbroken[1]


def test_a_smaller_sweep_afterwards_loses_nothing(tmp_path, unbroken):
    sweep(tmp_path)
    assert sweep(tmp_path, seeds=(1,), arms=("fm",)) == unbroken[0]


def test_a_sweep_that_breaks_in_the_middle_of_a_job_goes_on_to_the_same_file(
    tmp_path, unbroken, monkeypatch
):
    real, drawn = jobs.sample_rows, []

    def cut_off(*a, **k):
        drawn.append(1)
        if len(drawn) == 3:  # fm is done, fm_scaled is not
            raise KeyboardInterrupt
        return real(*a, **k)

    monkeypatch.setattr(jobs, "sample_rows", cut_off)
    with pytest.raises(KeyboardInterrupt):
        sweep(tmp_path)
    assert {row["method"] for row in json.loads((tmp_path / "toy.json").read_text())} == {"fm"}
    sweep(tmp_path)
    assert (tmp_path / "toy.json").read_bytes() == unbroken[1]


def test_trials_that_a_killed_sweep_left_behind_are_taken_up(tmp_path, unbroken, monkeypatch):
    todo = experiments.plan("toy", out=tmp_path, seeds=(0, 1), arms=CORE, changes=TINY, quick=True)
    jobs.run_job(
        todo.jobs[0], todo.store.parts, "cpu"
    )  # as a process leaves it that is killed before it can put them in place
    calls = counted(monkeypatch)
    sweep(tmp_path)
    assert calls == [("delta_fm", 0), ("fm", 1), ("delta_fm", 1)]
    assert (tmp_path / "toy.json").read_bytes() == unbroken[1]


def test_a_part_that_holds_no_rows_is_refused_and_can_be_removed(tmp_path, unbroken):
    todo = experiments.plan("toy", out=tmp_path, seeds=(0, 1), arms=CORE, changes=TINY, quick=True)
    todo.store.parts.mkdir()
    part = todo.store.parts / f"{todo.trials[0].key}.json"
    of_another_key = json.dumps(unbroken[0][-1:])
    for junk in ('[{"a": 1}]', "[]", "{}", "[", of_another_key):
        part.write_text(junk)
        with pytest.raises(DataError, match=rf"{part.name}.*(?i:remove)"):
            sweep(tmp_path)
        assert not (tmp_path / "toy.json").exists()
    part.unlink()
    sweep(tmp_path)
    assert (tmp_path / "toy.json").read_bytes() == unbroken[1]


def test_a_kept_training_goes_on_from_its_checkpoint_to_the_same_rows(
    tmp_path, unbroken, monkeypatch
):
    todo = experiments.plan("toy", out=tmp_path, seeds=(0, 1), arms=CORE, changes=TINY, quick=True)
    job, parts = todo.jobs[0], todo.store.parts
    real = jobs.train

    def stops_after_two(recipe, data, **how):
        real(recipe.changed(steps=2), data, **how)
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "train", stops_after_two)
    with pytest.raises(KeyboardInterrupt):
        jobs.run_job(job, parts, "cpu", keep="toy")
    began = []

    def goes_on(recipe, data, **how):
        run = real(recipe, data, **how)
        began.append(run.first)
        return run

    monkeypatch.setattr(jobs, "train", goes_on)
    jobs.run_job(job, parts, "cpu", keep="toy")
    assert began == [2]
    jobs.run_job(job, parts.with_name("guided.parts"), "cpu", keep="toy")
    assert began == [
        2,
        job.training.steps,
    ]  # another suite that names the same folder trains nothing
    todo.store.assemble(todo.trials, {"miniature": True})
    assert json.loads((tmp_path / "toy.json").read_text()) == [
        r for r in unbroken[0] if r["seed"] == 0 and r["method"].startswith("fm")
    ]


def test_other_settings_are_refused_and_named(tmp_path):
    sweep(tmp_path, seeds=(0,), arms=("fm",))
    with pytest.raises(DataError, match=r"other settings \(recipe.lr differ\)"):
        sweep(tmp_path, changes=TINY | {"lr": 0.1})
    with pytest.raises(DataError, match="samplings"):
        experiments.compare(
            "toy", out=tmp_path, seeds=(0,), arms=("fm",), changes=TINY, progress=False
        )


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"seeds": 3}, r"seeds is 3; it must be whole numbers, such as range\(3\)"),
        ({"seeds": ["a"]}, "seeds is 'a'; it must be a whole number"),
        ({"first_seed": 0.5}, "first_seed is 0.5; it must be a whole number"),
        ({"device": "gpu"}, "device is 'gpu', which torch cannot use here"),
        ({"workers": 0}, "workers is 0; it must be a whole number of at least 1"),
        ({"workers": "2"}, "workers is '2'; it must be a whole number"),
    ],
)
def test_what_no_sweep_can_have_is_refused_before_a_job(wrong, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        sweep(tmp_path / "out", **wrong)
    assert not (tmp_path / "out").exists()


def test_arms_that_share_a_training_share_a_job():
    listed = jobs.jobs_of(experiments.trials("toy", "core", seeds=(0,), changes={}))
    assert [job.training.method for job in listed][:2] == ["fm", "delta_fm"]
    controls = ["fm_scaled", "fm_retargeted", "fm_retargeted_vecor", "fm_retargeted_latent"]
    assert [trial.arm for trial in listed[0].trials] == ["fm", *controls]
    plain, other = (
        next(iter(experiments.trials("toy", "core", seeds=(0,), arms=("fm",), changes=c)))
        for c in ({}, {"weight": 0.3})
    )
    assert plain.key == other.key  # plain FM does not read the weight
    scaled = (
        next(iter(experiments.trials("toy", "core", seeds=(0,), arms=("fm_scaled",), changes=c)))
        for c in ({}, {"weight": 0.3})
    )
    assert len({trial.key for trial in scaled}) == 2


def test_divergence_is_a_row_and_the_others_go_on(tmp_path, monkeypatch):
    real = jobs.train

    def train(recipe, *a, **k):
        if recipe.method == "delta_fm":
            raise DivergenceError("the loss is inf in step 2")
        return real(recipe, *a, **k)

    monkeypatch.setattr(jobs, "train", train)
    found = sweep(tmp_path, seeds=(0,), arms=("fm", "delta_fm"))
    bad = [row for row in found if row["metric"] == "diverged"]
    assert [(row["method"], row["value"], row["reason"]) for row in bad] == [
        ("delta_fm", None, "the loss is inf in step 2")
    ]
    assert {row["method"] for row in found} == {"fm", "delta_fm"}
    assert sweep(tmp_path, seeds=(0,), arms=("fm", "delta_fm")) == found  # it would diverge again


def test_an_error_of_one_job_is_told_after_the_others_are_done(tmp_path, monkeypatch):
    real = jobs.train

    def train(recipe, *a, **k):
        if recipe.method == "fm":
            raise RuntimeError("out of luck")
        return real(recipe, *a, **k)

    monkeypatch.setattr(jobs, "train", train)
    with pytest.raises(CFMError, match=r"(?s)1 of 2 jobs failed.*fm seed 0.*out of luck"):
        sweep(tmp_path, seeds=(0,), arms=("fm", "delta_fm"))
    assert {row["method"] for row in json.loads((tmp_path / "toy.json").read_text())} == {
        "delta_fm"
    }


def test_a_worker_that_was_asked_to_stop_takes_no_new_job(monkeypatch, tmp_path):
    monkeypatch.setattr(workers._Worker, "stopping", True)
    todo = experiments.plan("toy", out=tmp_path, seeds=(0,), arms=("fm",), changes=TINY, quick=True)
    assert workers._work(0, todo.jobs[0], tmp_path, "cpu", False).stopped


def test_a_worker_whose_training_was_stopped_takes_no_new_job(monkeypatch, tmp_path):
    """A training hears the signal itself and `_stop` does not; the jobs that wait in the pool must
    not begin.
    """
    begun = []

    def terminated(*args, **how):
        begun.append(1)
        raise workers.Terminated

    monkeypatch.setattr(workers._Worker, "stopping", False)
    monkeypatch.setattr(workers, "run_job", terminated)
    job = experiments.plan(
        "toy", out=tmp_path, seeds=(0,), arms=("fm",), changes=TINY, quick=True
    ).jobs[0]
    assert all(workers._work(number, job, tmp_path, "cpu", False).stopped for number in range(2))
    assert begun == [1]


def start(out, *more):
    """A fork that runs the command with two workers, which are new interpreters; its process id."""
    words = ["--quick", "--arms", *CORE, "--out", str(out), "--workers", "2", *more]

    def command():
        # a background job of a shell ignores Ctrl-C, and so do its children
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return cli.main(["compare", "toy", *words])

    return forked(command, out / "said.txt")


def ended(process, seconds):
    """The exit code of a fork; it is killed, and its workers end with it, if it takes longer."""
    until = time.monotonic() + seconds
    while not (found := os.waitpid(process, os.WNOHANG))[0]:
        if time.monotonic() > until:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            raise AssertionError(f"it still ran after {seconds} s")
        time.sleep(0.02)
    return os.waitstatus_to_exitcode(found[1])


def test_workers_give_the_bytes_of_one_process(tmp_path, unbroken):
    settings = (f"{name}={value}" for name, value in TINY.items())
    code = ended(start(tmp_path, "--seeds", "2", "--set", *settings), 240)
    assert code == 0, (tmp_path / "said.txt").read_text()
    assert (tmp_path / "toy.json").read_bytes() == unbroken[1]


def test_an_interrupt_at_any_line_of_the_wait_leaves_no_future_locked():
    """Else the thread of the pool, which ends the futures, would wait forever, and a sweep with it."""

    def interrupted_at(line):
        seen = 0

        def trace(frame, event, arg):
            nonlocal seen
            if frame.f_code.co_filename == threading.__file__:
                return None  # the start of a thread holds locks that all threads need
            if event == "line":
                seen += 1
                if seen == line:
                    raise KeyboardInterrupt
            return trace

        futures = [Future() for _ in range(5)]
        futures[3].set_result(workers.Outcome("a job"))
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            next(workers._as_they_end(futures, seconds=0.01))
        except KeyboardInterrupt:
            return futures
        finally:
            sys.settrace(before)
        return None  # it took fewer lines

    line = 0
    with ThreadPoolExecutor(1) as other:
        while futures := interrupted_at(line := line + 1):
            for future in futures:
                # a lock that the main thread has kept cannot be taken by another one
                assert other.submit(future._condition.acquire, True, 5).result(), f"at line {line}"
                other.submit(future._condition.release).result()
                future.cancel()  # ends the thread that waits for it
    assert line > 5


@pytest.mark.skipif(os.name != "posix", reason="signals of another kind")
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_ends_a_sweep_with_its_code_and_keeps_what_is_finished(tmp_path, number, code):
    running = start(tmp_path, "--seeds", "200", "--set", "steps=50", "hidden_size=16", "batch=32")
    until = time.monotonic() + 200  # it ends when a job is done: seconds, or more on a busy machine
    while not list((tmp_path / "toy.parts").glob("*.json")) and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(running, number)
    assert ended(running, 240) == code, (tmp_path / "said.txt").read_text()
    kept = json.loads((tmp_path / "toy.json").read_text())
    seeds = sorted({row["seed"] for row in kept})
    assert 1 <= len(seeds) < 200
    kept = [row for row in kept if row["seed"] == seeds[0]]
    again = sweep(tmp_path / "again", seeds=seeds[:1], changes=TINY | {"steps": 50})
    assert [row for row in again if row in kept] == kept


def test_a_suite_that_another_process_runs_is_refused(tmp_path):
    with owned(tmp_path, ".toy.lock"):  # a lock is a process's own, so that the other one is a fork
        started = forked(
            lambda: cli.main(["compare", "toy", "--quick", "--out", str(tmp_path)]),
            tmp_path / "output.txt",
        )
        assert os.waitstatus_to_exitcode(os.waitpid(started, 0)[1]) == 2
    assert f"is written to by process {os.getpid()} on" in (tmp_path / "output.txt").read_text()
    assert not (tmp_path / "toy.json").exists()
