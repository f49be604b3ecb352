# ruff: noqa: E501  (a table: one mistake a line)
"""Seeded mistakes that the tests must find: python -m tests.faults.mutants [NAME ...]

Each is one change to one place of the package. It is made in a copy, never in the working tree, and
the named tests have to fail there; before that the copy without any mistake has to pass all of
them. Results: a table, and build/faults/mutants.json.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import NamedTuple

from tests.faults import counts

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "cfm_lite"
WORKERS = 2


class Mutant(NamedTuple):
    """`old`, which stands once in `file` of the package, becomes `new`; `tests` are pytest's words
    for what must notice.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str


LOSSES, DISPERSIVE, OBJECTIVE, PATHS = (
    "tests/test_losses.py",
    "tests/test_dispersive.py",
    "tests/test_objective.py",
    "tests/test_paths.py",
)
TRANSFORMS = "tests/test_transforms.py"
NEGATIVES, GUIDANCE, SAMPLERS, SDE = (
    "tests/test_negatives.py",
    "tests/test_guidance.py",
    "tests/test_samplers.py",
    "tests/test_sde.py",
)
TRAINING, AVERAGE, CHECKPOINT = (
    "tests/test_training.py",
    "tests/test_average.py",
    "tests/test_checkpoint.py",
)
DRAWS, BATCHES, RANKS = (
    "tests/test_draws.py",
    "tests/test_batches.py",
    "tests/faults/test_two_ranks.py",
)
IMAGES, ARCHIVE, CODEC, HINTS = (
    "tests/test_images.py",
    "tests/test_archive.py",
    "tests/test_codec.py",
    "tests/test_hints.py",
)
SEGMENTS = "tests/test_segments.py"
TWO_RANKS = "tests/test_trainable.py -k two_ranks"
CHANGES, DATA, SECURITY = (
    "tests/faults/test_data_changes.py",
    "tests/faults/test_data.py",
    "tests/faults/test_security.py",
)

MUTANTS = (
    # losses
    Mutant("a mean over K negatives, not a sum", "losses.py", ".mean(2).sum(0)", ".mean(2).mean(0)", LOSSES),
    Mutant("K negatives count once", "losses.py", "return len(u_neg) * F.mse_loss(", "return F.mse_loss(", LOSSES),
    Mutant("rescale is ignored", "losses.py", "kept / (kept.sum().clamp_min(1) if rescale else len(v))", "kept / len(v)", LOSSES),
    Mutant("the bound forgets K", "_internal/checks.py", "total = number * k\n", "total = number\n", LOSSES),
    Mutant("the target gets a gradient", "losses.py", "return F.mse_loss(v, u.detach())", "return F.mse_loss(v, u)", LOSSES),
    Mutant("REPA repels", "losses.py", "return -((projected * F.normalize(", "return ((projected * F.normalize(", LOSSES),
    Mutant("what repels attracts", "losses.py", "flow_matching(v, u) - weight * repulsion(", "flow_matching(v, u) + weight * repulsion(", LOSSES),
    Mutant("log B with the wrong sign", "losses.py", "flatten(), 0) - math.log(pairs)", "flatten(), 0) + math.log(pairs)", DISPERSIVE),
    Mutant("the gradient is not centred", "_internal/kernels.py", "weights = weights - weights.mean(1, keepdim=True)", "pass", DISPERSIVE),
    # negatives and draws
    Mutant("a row repels itself", "perturbations.py", "torch.randint(1, n, (n,)", "torch.randint(0, n, (n,)", NEGATIVES),
    Mutant("the own class repels", "negatives.py", "torch.where(place < first, place, place + last - first)", "place", NEGATIVES),
    Mutant("nothing is left out", "negatives.py", "return order[place], others > 0", "return order[place], others >= 0", NEGATIVES),
    Mutant("a position as velocity", "negatives.py", "_, u_neg = (path or _path_of(sample, self.path))", "u_neg, _ = (path or _path_of(sample, self.path))", NEGATIVES),
    Mutant("the identity is a shuffle", "perturbations.py", "torch.randint(\n        int(exclude_identity), math", "torch.randint(\n        0, math", "tests/test_perturbations.py"),
    Mutant("labels are dropped the other way round", "draws.py", "dropped = drawn.to(y.device) < p", "dropped = drawn.to(y.device) > p", DRAWS),
    Mutant("the farthest pairing", "draws.py", "(table, maximize=True)", "(table, maximize=False)", DRAWS),
    Mutant("a key is its first part", "draws.py", "blake2b(repr(key).encode()", "blake2b(repr(key[:1]).encode()", DRAWS),
    # objective
    Mutant("every term attracts", "objective.py", "scale = term.sign * term.weight", "scale = term.weight", OBJECTIVE),
    Mutant("the null label is a class", "models/embed.py", "return torch.full_like(y, self.num_classes)", "return torch.full_like(y, self.num_classes - 1)", OBJECTIVE + " tests/test_conditions.py"),
    Mutant("times of the linear path", "objective.py", "self.time_distribution = on_path(time, path, \"time\")", "self.time_distribution = time", OBJECTIVE),
    Mutant("negatives of the linear path", "terms.py", "on_path(self.negatives, draw.path, \"negatives\")", "self.negatives", OBJECTIVE),
    Mutant("two paths at once", "paths.py", "if given not in (path, path.name):", "if not given:", OBJECTIVE),
    Mutant("a score that divides by nothing", "paths.py", "_alone(sigma, rate, alpha, d_alpha)", "(alpha > 9)", PATHS),
    Mutant("noise that keeps the data", "paths.py", "return ratio * (x - sigma * x0) + d_sigma * x0", "return ratio * x + d_sigma * x0", PATHS),
    Mutant("a sum weighted as a mean", "terms.py", "return 0.5 / max(1, d * (d - 1)) if", "return 0.5 if", OBJECTIVE),
    Mutant("torch.func meets the kernel", "_internal/kernels.py", "if transformed(z):", "if False:", TRANSFORMS),
    Mutant("dopri5 with tiny steps for hours", "samplers.py", "or self.left < 0", "", SAMPLERS),
    Mutant("dopri5 without an end", "samplers.py", "len(self.recent) == 18 and len(set(self.recent)) <= 3", "False", SAMPLERS),
    Mutant("all shards draw alike", "objective.py", "seed, step, first + shard, purpose)", "seed, step, first, purpose)", f"{OBJECTIVE} {TRAINING}"),
    # guidance and samplers
    Mutant("guidance from the wrong end", "guidance.py", "guided = v_bad + scale * (v - v_bad)", "guided = v + scale * (v - v_bad)", GUIDANCE),
    Mutant("debiasing biases twice", "guidance.py", "(1 - weight) * v + weight * _mean", "(1 - weight) * v - weight * _mean", GUIDANCE),
    Mutant("an interval without its end", "guidance.py", "& (t <= interval[1] + _SLACK)", "& (t < interval[1] - _SLACK)", GUIDANCE),
    Mutant("sampling in training mode", "_internal/networks.py", "    model.eval()\n    try:", "    try:", GUIDANCE),
    Mutant("Heun with one time", "samplers.py", "w = velocity(_move(x, v, dt), t + dt)", "w = velocity(_move(x, v, dt), t)", SAMPLERS),
    Mutant("Kutta's weights do not sum to 1", "samplers.py", "_move(x, k1 + 3 * (k2 + k3) + k4, dt / 8)", "_move(x, k1 + 3 * (k2 + k3) + k4, dt / 6)", SAMPLERS),
    Mutant("half the noise", "samplers.py", "(2 * c * dt) ** 0.5 * z", "(c * dt) ** 0.5 * z", SDE),
    Mutant("the last step has no score", "samplers.py", "v if last_step == \"euler\" else v + c * path.score(x, v, t)", "v", SDE),
    # checkpoints
    Mutant("a hash that is not compared", "engine/checkpoint.py", "if _digest(data) != digest:", "if not digest:", CHECKPOINT),
    Mutant("the oldest is the newest", "engine/checkpoint.py", "or (0, 0), reverse=True)", "or (0, 0))", CHECKPOINT),
    Mutant("damaged ones count as kept", "engine/checkpoint.py", "                verify(path)\n            valid += 1", "                pass\n            valid += 1", CHECKPOINT),
    Mutant("weights are renamed before they are on the disk", "engine/checkpoint.py", "        os.fsync(file.fileno())\n", "", CHECKPOINT),
    Mutant("a manifest may name any file", "engine/checkpoint.py", "    if outside:\n", "    if False:\n", f"{SECURITY} -k climbs"),
    Mutant("what was damaged since counts as known", "engine/checkpoint.py", "return _KNOWN.get(path.resolve()) == _stamps(path)", "return path.resolve() in _KNOWN", CHECKPOINT),
    Mutant("a save verifies what it wrote", "engine/checkpoint.py", "            if not _is_known(path):\n", "            if True:\n", CHECKPOINT),
    # resume and training
    Mutant("an automatic resume starts again", "runs/loop.py", 'return checkpoint.exists(expanded(folder) / CHECKPOINTS)', "return False", "tests/test_resume_auto.py"),
    Mutant("the average is not resumed", "engine/state.py", "for prefix, module in self._modules().items():\n            mine", 'for prefix, module in [("objective.", self.objective)]:\n            mine', TRAINING),
    Mutant("the average's count is not resumed", "engine/state.py", 'average.n_averaged = saved.state["averaged"]', "pass", TRAINING),
    Mutant("the second average is the first", "training.py", "Average(objective.model, decay, settings", "Average(objective.model, ema_decay, settings", TRAINING),
    Mutant("an average starts cold", "training.py", "ema_warmup: bool = True,", "ema_warmup: bool = False,", TRAINING),
    Mutant("another recipe may go on", "runs/segments.py", "for name, pair in changes(before, recipe).items() if name not in FREE}", "for name, pair in changes(before, recipe).items() if name in ()}", SEGMENTS),
    Mutant("the checkpoint's recipe is not looked at", "runs/loop.py", 'accept=lambda saved: check_same_recipe(folder / CHECKPOINTS, saved, recipe)', "accept=lambda saved: None", SEGMENTS),
    Mutant("other data may go on", "runs/segments.py", "if saved and given and saved != given:", "if False:", SEGMENTS),
    Mutant("the config says what was true before", "runs/segments.py", "return {\n        **before,\n        **now,", "return {**now, **before,", SEGMENTS),
    Mutant("saving counts for the rate", "runs/throughput.py", "        self._since += gone\n        self._warm += gone\n", "        pass\n", "tests/test_throughput.py"),
    Mutant("a cosine is a line", "runs/recipe.py", "0.5 - 0.5 * math.cos(math.pi * left)", "left", "tests/test_recipes.py -k learning_rate"),
    Mutant("the step is not resumed", "training.py", "self.step, self._guard.saved = self._state", "_, self._guard.saved = self._state", TRAINING),
    Mutant("the optimizer's state is not resumed", "engine/state.py", '{"state": entries, "param_groups"', '{"state": {}, "param_groups"', TRAINING),
    Mutant("another seed may go on", "engine/state.py", "**_plain(self.settings),", '**{k: v for k, v in _plain(self.settings).items() if k != "seed"},', TRAINING),
    Mutant("micro-batches count in full", "engine/optimizers.py", "(total * share if share < 1 else total).backward()", "total.backward()", TRAINING),
    Mutant("micro-batches draw alike", "training.py", "            first += shards_in(part[0].shape[0], shard)\n", "", TRAINING),
    Mutant("a bad step is not noticed", "engine/guard.py", "for name, value in values.items() if not math.isfinite(value.item())]", "for name, value in ()]", TRAINING),
    Mutant("the average warms up late", "engine/average.py", "(1 + n) / (10 + n)) if self.warmup", "(1 + n) / (100 + n)) if self.warmup", f"{AVERAGE} {TRAINING}"),
    Mutant("updates are not counted", "engine/average.py", "        self.n_averaged += 1\n", "", f"{AVERAGE} {TRAINING}"),
    # data
    Mutant("images with the labels of others", "data/batches.py", "None if y is None else y[rows]", "None if y is None else y[rows.flip(0)]", BATCHES),
    Mutant("a resumed run sees the first rows again", "data/batches.py", "= start * size, -1,", "= 0, -1,", BATCHES),
    Mutant("latents of the neighbour", "data/latents/reader.py", "out[i] = self._maps[number][row, mirror]", "out[i] = self._maps[number][row - 1, mirror]", "tests/test_latents.py -k vae_gave"),
    Mutant("nobody looks before a map is read", "data/latents/shards.py", "        self._watch.check(set(numbers))\n", "", f"{CHANGES} -k never_a_signal"),
    Mutant("the sum at the end of a tar.gz is not read", "data/archive.py", "        read_to_end(tar)\n", "", f"{DATA} -k tar.gz"),
    Mutant("an empty class is none, whatever was in it", "data/images.py", "if not paths and name not in before]", "if not paths]", "tests/test_latents.py -k lost_its_only"),
    Mutant("half a remedy is said", "data/latents/shards.py", "if not (told := str(error)).endswith(REMEDY):", "if (told := str(error)):", "tests/test_latents.py -k remedy_that_is_said"),
    Mutant("what was removed is another set", "data/latents/prepare.py", "if key not in there for", "if key in there for", "tests/test_latents.py -k may_be_removed"),
    Mutant("a name that is refused is asked for again", "data/latents/codec.py", "local or bool(refused)", "local", "tests/test_codec.py -k asked_for_once"),
    Mutant("depth is guessed from what a picture holds", "data/images.py", "(levels * 255 // top)", "(levels * 255 // max(255, int(levels.max())))", f"{IMAGES} -k depth"),
    Mutant("a class called train is entered", "data/images.py", "return all(_part(folder)", "return any(_part(folder)", f"{IMAGES} -k structure"),
    Mutant("train and val become one class", "data/images.py", "    _refuse_mixtures(root, full)\n    return root", "    return root", f"{IMAGES} -k mix"),
    Mutant("a folder that cannot be listed is empty", "data/images.py", "    except OSError as error:\n        raise unlisted(folder, error) from None\n    return [folder", "    except OSError:\n        pass\n    return [folder", f"{IMAGES} -k listed"),
    Mutant("every decoder is asked", "data/images.py", "formats=FORMATS\n", "formats=None\n", f"{IMAGES} -k another_kind"),
    Mutant("a decoder's odd error ends the run", "data/images.py", "except Exception as error:\n        # decoders", "except (OSError, ValueError) as error:\n        # decoders", f"{IMAGES} -k decoder_raises"),
    Mutant("a long picture is scaled whole", "data/images.py", "if width * height > RESIZED:", "if width * height > 1000 * RESIZED:", f"{IMAGES} -k long_image"),
    Mutant("hidden folders hold pictures", "data/archive.py", 'return name.startswith(".") or name.lower() in UNSEEN', "return False", f"{IMAGES} -k hidden"),
    Mutant("inner tars count for nothing", "data/archive.py", "            budget.spend(member, 0 if inner else member.size)", "            if outer:\n                budget.spend(member, 0 if inner else member.size)", f"{ARCHIVE} -k inner"),
    Mutant("another kind of VAE is filled at random", "data/latents/codec.py", "if found != kind.__name__:", "if False:", f"{CODEC} -k another_kind"),
    Mutant("a batch is proposed without its shard", "data/batches.py", " --set shard={most // ranks}\")", '")', HINTS),
    Mutant("links are unpacked", "data/archive.py", "if not (member.isreg() or member.isdir()) or", "if", f"{SECURITY} -k link"),
    # one's own network
    Mutant("labels are dropped after eval too", "objective.py", "self.label_dropout if self.training else 0.0", "self.label_dropout", "tests/test_own_network.py -k eval"),
    Mutant("features counted from 0", "_internal/networks.py", "if missing or 0 in keys:", "if False:", "tests/test_own_network.py -k container"),
    Mutant("a lost run says nothing", "engine/batches.py", "self._steps, self._begun = steps, False", "self._steps, self._begun = steps, True", "tests/test_own_network.py -k nobody"),
    Mutant("labels keep their kind", "_internal/checks.py", "return y if y.dtype == torch.int64 else y.long()", "return y", "tests/test_numbers_given.py"),
    Mutant("no word knows its neighbours", "models/text.py", "said = said + F.gelu(", "said = said + 0 * F.gelu(", "tests/test_mmdit.py"),
    Mutant("the time in 16 bits", "models/embed.py", "if autocasting(x) else contextlib.nullcontext()", "if False else contextlib.nullcontext()", "tests/test_time_precision.py"),
    Mutant("moments in another order", "engine/sharded.py", "value.stride() != p.stride()", "False", "tests/test_trainable.py"),
    Mutant("a tied weight is stored twice", "engine/checkpoint.py", "        if place in names:", "        if False:", "tests/test_trainable.py -k tied"),
    # several processes
    Mutant("a sum over ranks, not a mean", "engine/parallel.py", "torch.cat(flat) / self.size", "torch.cat(flat)", RANKS),
    Mutant("a parameter without gradient has to have moments", "engine/sharded.py", ", strict=False)", ")", TWO_RANKS),
    Mutant("DDP waits for a gradient that never comes", "engine/sharded.py", "        if missed:\n", "        if False:\n", TWO_RANKS),
    Mutant("DDP waits for what an earlier micro-batch gave", "engine/sharded.py", " + [p for p in earlier if p not in again]", "", "tests/test_trainable.py -k some_micro"),
    Mutant("what no rank uses is moved", "engine/exchange.py", "self._parameters[number].grad = None", "pass", "tests/test_trainable.py -k some_micro"),
    Mutant("FSDP leaves out what a rank lacks", "engine/sharded.py", "                    whole.grad = torch.zeros_like(whole)\n", "                    pass\n", "tests/test_trainable.py -k some_micro"),
    Mutant("gradients of two dtypes meet", "engine/sharded.py", "                if earlier:\n", "                if False:\n", "tests/test_trainable.py -k some_micro"),
    Mutant("a block is taken for another", "engine/exchange.py", "and apart.item() > 1e-12:", "and False:", "tests/test_trainable.py -k other_blocks"),
    Mutant("FSDP is given channels-last", "engine/sharded.py", "p.data = p.data.contiguous()", "pass", TWO_RANKS),
    Mutant("all ranks must ask for a stop", "engine/parallel.py", "op=dist.ReduceOp.MAX)", "op=dist.ReduceOp.MIN)", RANKS),
    Mutant("ranks keep what each has drawn", "training.py", "        world.start_alike(objective)\n", "", RANKS),
    Mutant("a slow rank counts as dead", "engine/parallel.py", "                beat, seen = last, now\n", "                beat = last\n", RANKS),
    Mutant("a stopped rank lives for ever", "engine/parallel.py", "            elif now - seen > self.timeout:\n", "            elif False:\n", RANKS),
    Mutant("ranks draw alike", "training.py", "first = self.world.rank * shards_in(rows, shard)", "first = 0", RANKS),
    # the command line
    Mutant("a run is looked for from where one stands", "runs/folder.py", "for view in (\n        Path(os.path.abspath(given)),\n        Path(os.path.realpath(given)),\n    )", "for view in (given, given)", "tests/test_runs.py -k found_from"),
    Mutant("a tilde is a name", "_internal/places.py", "        return Path(text).expanduser()\n", "        return Path(text)\n", "tests/test_places.py"),
    Mutant("the prompt is not heard", "cli/sample.py", "prompts=self.prompts", "prompts=()", "tests/test_flags.py -k sample-prompt"),
    Mutant("the negative prompt is not heard", "runs/sampling.py", "interval, negative=away)", "interval)", "tests/test_words.py -k negative"),
    Mutant("the own velocity has a gradient", "terms.py", "with torch.no_grad():\n            own,", "with torch.enable_grad():\n            own,", "tests/test_conditions.py -k contrast"),
    Mutant("every method reads every field", "runs/reads.py", "elif name in idle:", "elif False:", "tests/test_flags.py -k one_method"),
    Mutant("what is refused leaves its folder", "runs/loop.py", "        if trainer.step == 0:\n            for path in", "        if False:\n            for path in", "tests/test_flags.py -k refused_by_name"),
)  # fmt: skip


def rotten(package: Path = PACKAGE) -> list[str]:
    """The mutants whose old text does not stand exactly once in its file."""
    found = {
        mutant.name: (package / mutant.file).read_text(encoding="utf-8").count(mutant.old)
        for mutant in MUTANTS
    }
    return [f"{name}: {count} times" for name, count in found.items() if count != 1]


def copied(folder: Path) -> Path:
    """A copy of what the tests need; what is only read is linked."""
    ignored = shutil.ignore_patterns("__pycache__", "node_modules")
    for name in ("cfm_lite", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in (
        "pyproject.toml",
        "Makefile",
        "README.md",
        "docs",
        "notebooks",
        "slides",
        "data",
        "tools",
    ):
        (folder / name).symlink_to(ROOT / name)
    return folder


def passes(folder: Path, tests: str, seconds: float = 900) -> bool:
    """True where pytest finds nothing wrong in the copy."""
    environment = os.environ | {
        "PYTHONPATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-m",
        "not faults and not scale",
        "-p",
        "no:xdist",
        *tests.split(),
    ]
    with tempfile.TemporaryFile("w+") as said:
        # a session of its own, and a file instead of a pipe: a rank that hangs can outlive its test
        run = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=said, stderr=said, start_new_session=True
        )
        try:
            code = run.wait(seconds)
        except subprocess.TimeoutExpired:
            return False  # a mistake that makes the tests hang is found, too
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)
            run.wait()
        if code not in (0, 1):
            said.seek(0)
            raise RuntimeError(f"pytest {tests} ended with {code}:\n{said.read()[-4000:]}")
    return code == 0


def survives(folder: Path, mutant: Mutant) -> bool:
    """Make the mistake in the copy, run its tests, and put the file back."""
    path = folder / "cfm_lite" / mutant.file
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        return passes(folder, mutant.tests)
    finally:
        path.write_text(whole, encoding="utf-8")


def tried(mutants: Sequence[Mutant]) -> Iterator[tuple[Mutant, bool, float]]:
    """(mutant, whether it was killed, seconds), two at a time, each in a copy of its own."""
    with tempfile.TemporaryDirectory() as home, ThreadPoolExecutor(WORKERS) as pool:
        copies: Queue[Path] = Queue()
        for number in range(WORKERS):
            copies.put(copied(Path(home) / str(number)))

        def alone(work):
            folder, began = copies.get(), time.monotonic()
            try:
                return work(folder), time.monotonic() - began
            finally:
                copies.put(folder)

        suites = sorted({mutant.tests for mutant in mutants})
        sound = list(pool.map(lambda tests: alone(lambda folder: passes(folder, tests))[0], suites))
        if not all(sound):
            wrong = [tests for tests, ok in zip(suites, sound) if not ok]
            raise SystemExit(
                f"without any mistake these tests fail already: {', '.join(wrong)}. Mend them "
                "first."
            )
        print(f"without any mistake all {len(suites)} sets of tests pass", flush=True)
        results = pool.map(lambda mutant: alone(lambda folder: survives(folder, mutant)), mutants)
        for mutant, (survived, seconds) in zip(mutants, results):
            yield mutant, not survived, seconds


def main(names: Sequence[str] = ()) -> int:
    """Run the mutants (of these names, or all) and print the table; returns how many survived."""
    if rotten():
        raise SystemExit("the package has changed under these mutants: " + "; ".join(rotten()))
    chosen = [mutant for mutant in MUTANTS if not names or mutant.name in names]
    began, rows = time.monotonic(), []
    for mutant, killed, seconds in tried(chosen):
        rows.append(
            {
                "name": mutant.name,
                "file": mutant.file,
                "tests": mutant.tests,
                "killed": killed,
                "seconds": round(seconds, 1),
            }
        )
        print(
            f"{'killed' if killed else 'SURVIVED':<9} {seconds:6.1f} s  {mutant.file:<18} "
            f"{mutant.name}",
            flush=True,
        )
    killed, seconds = sum(row["killed"] for row in rows), time.monotonic() - began
    print(f"{killed} of {len(rows)} killed in {seconds:.0f} s")
    if not names:
        counts.write("mutants", mutants=len(rows), killed=killed, seconds=round(seconds), rows=rows)
    return len(rows) - killed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
