"""The training loop: draw, step, average; it yields, and the caller prints, plots and saves.

Divergence costs no host synchronisation: a finite flag stays on the device and gates the fused
optimizer (`found_inf`) and the average, so that parameters never change on a bad step, nor after
it; the step and the term are read, and `DivergenceError` raised, at the next logged step (on the
CPU at once). Numbers that stay finite can run away as well: at logged steps the largest
flow-matching error so far is held against `runaway`^2 times the first one.
"""

import contextlib
import copy
import dataclasses
import functools
import json
import math
import platform
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import cfm_lite
from cfm_lite import paths
from cfm_lite._internal.checks import check_choice, check_count, check_flag, check_number, plain
from cfm_lite._internal.networks import check_trainable
from cfm_lite.engine import checkpoint, compiled, sharded
from cfm_lite.engine.average import Average
from cfm_lite.engine.parallel import ALONE, World
from cfm_lite.errors import ConfigError, DataError, DivergenceError, ResumeMismatchError
from cfm_lite.objective import FlowMatching, Objective

__all__ = ["Running", "Trainer", "warmup"]

PRECISIONS = {"float32": None, "bf16": torch.bfloat16}
PARALLEL = ("ddp", "fsdp")


def warmup(steps: int) -> Callable[[int], float]:
    """A learning-rate factor that rises linearly to 1 over `steps` and stays there."""
    return functools.partial(_risen, steps)


def _risen(steps: int, step: int) -> float:
    return min(1.0, (step + 1) / steps) if steps else 1.0


class Running(Iterator[dict[str, Tensor]]):
    """What `Trainer.run` returns: the steps of a run, each done when it is asked for. Dropped
    before the first, it warns.
    """

    def __init__(self, steps: Iterator[dict[str, Tensor]]) -> None:
        self._steps, self._begun = steps, False

    def __next__(self) -> dict[str, Tensor]:
        self._begun = True
        return next(self._steps)

    def __del__(self) -> None:
        if not getattr(self, "_begun", True):
            warnings.warn(
                "a run was made and never iterated, so nothing was trained. Write `for log in "
                "trainer.run(...): ...`.",
                UserWarning,
                stacklevel=2,
            )


class Trainer:
    """Owns the optimizer, the averaged model `ema` and the step count of one objective.

    `optimizer` defaults to fused AdamW(lr, betas, weight_decay) with 1e-3, (0.9, 0.999) and 0; one
    that is given has settings of its own, and must hold every parameter that requires a gradient.
    `clip` bounds the gradient norm (None: no bound). `ema_decay` in [0, 1); with `ema_warmup` it is
    at most (1 + n) / (10 + n) after n updates, so that a short run does not average its own start.
    `ema2_decay` > 0 keeps a second average, `ema2`, with a decay of its own (0: none); both are
    saved. `seed` keys every draw with the step. `accumulate` splits a batch into that many
    micro-batches of whole shards. `precision` is "float32" or "bf16" (autocast; parameters and
    losses stay float32). `schedule` maps a step to a factor on lr. `runaway` (None: never) stops,
    at a logged step, a run whose flow-matching error has been above runaway^2 times the first one
    seen, or times 1, the variance of the noise, if that is more: the velocity was then about
    `runaway` times as fast as the data ask for. So an optimum that repulsion scales by more than
    that, weight * K > 1 - 1 / runaway, is refused as well. `compile` compiles the transformer
    blocks in place (each for a size of micro-batch), or, where there are none, the objective as a
    whole; None does so on CUDA, where there are blocks. Names, copies and the average stay plain.
    In a `world` of several ranks each is given its own part of the batch, whole shards in the order
    of the ranks; gradients and logged values are means over all of them. `parallel` is "ddp", every
    rank holds everything, or "fsdp", every rank holds a part (FSDP2); then `ema` runs on all ranks
    together.

    Raises ConfigError for a value outside its range, for parameters that are not finite, and
    without a compiler that is asked for.
    """

    def __init__(
        self,
        objective: Objective,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        lr: float | None = None,
        weight_decay: float | None = None,
        betas: tuple[float, float] | None = None,
        clip: float | None = 1.0,
        ema_decay: float = 0.999,
        ema_warmup: bool = True,
        ema2_decay: float = 0.0,
        seed: int = 0,
        accumulate: int = 1,
        precision: str = "float32",
        log_every: int = 50,
        schedule: Callable[[int], float] | None = None,
        compile: bool | None = None,
        runaway: float | None = 20.0,
        world: World = ALONE,
        parallel: str = "ddp",
    ) -> None:
        if not isinstance(objective, Objective):
            raise ConfigError(
                f"objective has type {type(objective).__name__}; it must be an Objective, such as "
                "objective.fm(model)."
            )
        check_flag(ema_warmup=ema_warmup)
        check_choice("parallel", parallel, PARALLEL)
        ema_warmup, compile, seed = (
            plain(ema_warmup),
            plain(compile),
            check_count("seed", seed, low=-(2**63)),
        )
        given = {"lr": lr, "weight_decay": weight_decay, "betas": betas}
        lost = [f"{name} = {value!r:.60}" for name, value in given.items() if value is not None]
        if optimizer is not None and lost:
            raise ConfigError(
                f"{lost[0]} is given beside an optimizer, which has its own; leave out "
                f"{lost[0].split()[0]}, or optimizer."
            )
        lr = check_number("lr", 1e-3 if lr is None else lr, 0.0, 1e6, open_low=True)
        weight_decay = check_number(
            "weight_decay", 0.0 if weight_decay is None else weight_decay, 0.0, math.inf
        )
        betas = _pair_of_betas((0.9, 0.999) if betas is None else betas)
        ema_decay = check_number("ema_decay", ema_decay, 0.0, 1.0, open_high=True)
        ema2_decay = check_number("ema2_decay", ema2_decay, 0.0, 1.0, open_high=True)
        check_choice("precision", precision, PRECISIONS)
        if clip is not None:  # a negative bound would reverse the gradient
            clip = check_number("clip", clip, 0.0, float("inf"), open_low=True)
        self.runaway = (
            runaway if runaway is None else check_number("runaway", runaway, 1.0, float("inf"))
        )
        check_trainable(objective)
        checkpoint.check_storable(objective.state_dict())
        self.objective, self.world = objective, world
        world.start_alike(objective)
        self._averaged = Average(objective.model, ema_decay, ema_warmup)
        self._averaged2 = Average(objective.model, ema2_decay, ema_warmup) if ema2_decay else None
        if parallel == "fsdp" and optimizer is not None:
            raise ConfigError(
                "the optimizer given is for whole parameters; with parallel='fsdp' leave it out, "
                "or use 'ddp'."
            )
        self.compiled = compiled.is_compiled(
            compile,
            objective,
            next((p.device for p in objective.parameters()), torch.device("cpu")),
        )
        self._wrapped, self._forward = self._spread(parallel, PRECISIONS[precision])
        self.parameters = [p for p in objective.parameters() if p.requires_grad]
        if not self.parameters:
            raise ConfigError(
                "the objective has no parameter that requires a gradient; there is nothing to "
                "train."
            )
        if optimizer is not None:
            _check_optimizer(optimizer, objective)
        self.optimizer = optimizer or torch.optim.AdamW(
            self.parameters, lr=lr, betas=betas, weight_decay=weight_decay, fused=True
        )
        self.clip, self.seed, self.precision, self.schedule = (
            clip,
            seed,
            precision,
            schedule or warmup(0),
        )
        self.accumulate, self.log_every = (
            check_count("accumulate", accumulate),
            check_count("log_every", log_every),
        )
        self.ema_decay, self.ema_warmup, self.ema2_decay, self.step = (
            ema_decay,
            ema_warmup,
            ema2_decay,
            0,
        )
        self.last_good: Path | None = None
        self._base_lr = [plain(group["lr"]) for group in self.optimizer.param_groups]
        device = self.parameters[0].device
        self._at_once = device.type == "cpu"  # where looking at a number costs no synchronisation
        self._names: list[str] = []  # of what `_bad` counts
        self._errors: tuple[Tensor, Tensor] | None = (
            None  # the first flow-matching error and the largest, on the device
        )
        self._ok = torch.ones(
            (), device=device, dtype=torch.float32
        )  # as the fused optimizer reads it
        self._bad = torch.full(
            (2,), -1, device=device, dtype=torch.long
        )  # step and term of the first bad step

    def _spread(self, parallel: str, half: torch.dtype | None) -> tuple[nn.Module, Any]:
        """The objective over the ranks, and what runs it: what is compiled is so before it is
        wrapped.
        """
        if self.compiled:
            compiled.compile_parts(self.objective)
        if parallel == "fsdp" and self.world.size > 1:
            device = next(self.objective.parameters()).device
            for average in self._averages.values():
                sharded.shard(average.module, self.world, device, read=True)
            wrapped: Any = sharded.shard(self.objective, self.world, device, half)
        else:
            wrapped = self.world.wrap(self.objective)
        return wrapped, compiled.unsplit(wrapped, self.objective) if self.compiled else wrapped

    @property
    def ema(self) -> nn.Module:
        """The averaged model, a plain module: what one samples from."""
        return self._averaged.module

    @property
    def ema2(self) -> nn.Module | None:
        """The second average, None where `ema2_decay` is 0."""
        return self._averaged2.module if self._averaged2 else None

    @property
    def lr(self) -> float:
        """The learning rate of the last step (of the first group, where there are several)."""
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def _averages(self) -> dict[str, Average]:
        """The averages by the name that they have in a checkpoint."""
        return {"ema": self._averaged} | ({"ema2": self._averaged2} if self._averaged2 else {})

    def run(self, batches: Iterable[Any], steps: int) -> Iterator[dict[str, Tensor]]:
        """Train for `steps` steps; yields {"step", "loss", term: value, "grad_norm"} of detached
        tensors after each.

        Each step is done when its entry is asked for: `for log in trainer.run(...): ...`; a run
        that nobody iterates trains nothing, and warns. `batches` gives x1, (x1, y) or (x1, y,
        context), or {"x1": ..., "y": ..., "context": ...}. Raises ConfigError for wrong arguments,
        DivergenceError (nothing was updated), and DataError for batches of another kind or that end
        early.
        """
        steps = check_count("steps", steps)
        try:
            source = iter(batches)
        except TypeError:
            raise ConfigError(
                f"batches has type {type(batches).__name__}; it must be an iterable of batches, "
                "such as data.batches."
            ) from None
        return Running(self._run(source, steps))

    def _run(self, source: Iterator[Any], steps: int) -> Iterator[dict[str, Tensor]]:
        self.objective.train()  # every part of it
        for i in range(steps):
            try:
                batch = next(source)
            except StopIteration:
                raise DataError(
                    f"the batches ended after {i} of {steps} steps; give an endless iterator, such "
                    "as data.batches."
                ) from None
            yield self._train_step(_as_batch(batch), last=i == steps - 1)

    def _train_step(self, batch: tuple[Any, ...], last: bool) -> dict[str, Tensor]:
        if not (
            self.objective.training and self.objective.model.training
        ):  # as a look at held-out data leaves them
            self.objective.train()
        for group, base in zip(self.optimizer.param_groups, self._base_lr):
            group["lr"] = base * self.schedule(self.step)
        log = self._backward(batch)
        norm = sharded.full(
            nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        )
        if self.clip is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, self.clip, norm)
        self._guard(log, norm, check=last or (self.step + 1) % self.log_every == 0)
        self._update()
        self.step += 1
        return {"step": torch.tensor(self.step), **log, "grad_norm": norm}

    def _backward(self, batch: tuple[Any, ...]) -> dict[str, Tensor]:
        """Gradients of the whole batch, micro-batch by micro-batch, and the batch's mean loss and
        terms.
        """
        self.optimizer.zero_grad(set_to_none=True)
        parts = self._micro_batches(batch)
        log: dict[str, Tensor] = {}
        first = self.world.rank * self._shards(batch)
        for part in parts:
            share = len(part[0]) / len(batch[0])
            with self._talks_last(part is parts[-1]):
                with self._autocast(part[0].device):
                    total, values = self._forward_at(first, part)
                if not total.requires_grad:
                    raise ConfigError(
                        "the loss has no gradient: the model's velocity was detached, or made "
                        "under torch.no_grad()."
                    )
                (total * share if share < 1 else total).backward()
            for name, value in {**values, "loss": total.detach()}.items():
                log[name] = value if share == 1 else value * share + log.get(name, 0)
            first += self._shards(part)
        return self.world.mean(log)

    def _shards(self, batch: tuple[Any, ...]) -> int:
        return -(-len(batch[0]) // (self.objective.shard or len(batch[0])))

    def _talks_last(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Gradients are exchanged once a batch, with those of its last micro-batch."""
        wrapped: Any = self._wrapped
        if sharded.is_sharded(wrapped):
            wrapped.set_requires_gradient_sync(last)
            return contextlib.nullcontext()
        return (
            wrapped.no_sync()
            if isinstance(wrapped, nn.parallel.DistributedDataParallel) and not last
            else contextlib.nullcontext()
        )

    def _forward_at(
        self, first_shard: int, part: tuple[Any, ...]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        self.objective.at(self.seed, self.step, first_shard)
        return self._forward(*part)

    def _micro_batches(self, batch: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        if self.accumulate == 1:
            return [batch]
        rows, shard = len(batch[0]), self.objective.shard or 0
        size = -(-rows // self.accumulate)
        if not shard or rows % self.accumulate or size % shard:
            unit = self.accumulate * (shard or 1)
            near = max(1, round(rows / unit)) * unit
            how = (
                f"choose a batch of {near}"
                if shard
                else f"give the objective a shard of {near // self.accumulate} and a batch of {near}"
            )
            raise ConfigError(
                f"a batch of {rows} cannot be cut into {self.accumulate} micro-batches of whole "
                f"shards (shard = {shard or None}); {how}, "
                f"or any multiple of {unit}."
            )
        return [
            tuple(None if x is None else x[i : i + size] for x in batch)
            for i in range(0, rows, size)
        ]

    def _autocast(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        dtype = PRECISIONS[self.precision]
        return (
            contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
        )

    def _guard(self, log: Mapping[str, Tensor], norm: Tensor, check: bool) -> None:
        """Latch the first step that is not finite; read it at once on the CPU, at the next logged
        step on a device.
        """
        watched = {**log, "the gradient norm": norm}
        if self._at_once:
            bad = [name for name, value in watched.items() if not math.isfinite(value.item())]
            if bad:
                raise self._divergence(
                    self.step + 1, next((name for name in bad if name != "loss"), "loss")
                )
        else:
            finite = torch.stack([torch.isfinite(value) for value in watched.values()])
            now = torch.stack(
                [torch.full_like(self._bad[0], self.step + 1), finite.long().argmin()]
            )
            self._bad = torch.where(finite.all() | (self._bad[0] >= 0), self._bad, now)
            self._ok = (
                self._bad[0] < 0
            ).float()  # nothing moves any more, until the error is raised
            self._names = list(watched)
        errors = [
            log[name]
            for name, term in self.objective.terms.items()
            if isinstance(term, FlowMatching)
        ]
        if errors:
            first, largest = self._errors or (errors[0].clamp_min(1.0), errors[0])
            self._errors = first, torch.maximum(largest, errors[0])
        if check:
            self._check_health(self.step + 1)

    def _check_health(self, step: int) -> None:
        """Read what was latched on the device, the average, and the largest error; raise
        DivergenceError for the first that is bad.
        """
        if (latched := self._bad.tolist())[0] >= 0:
            raise self._divergence(latched[0], self._names[latched[1]])
        for module in (
            average.module
            for average in self._averages.values()
            if not _is_finite(average.module.parameters())
        ):
            for name in (name for name, p in module.named_parameters() if not _is_finite([p])):
                raise DivergenceError(
                    f"the average of {name} is not finite at step {step}, and {self._kept()}. Go "
                    "on from there."
                )
        first, largest = torch.stack(self._errors).tolist() if self._errors else (1.0, 0.0)
        limit = math.inf if self.runaway is None else self.runaway**2 * first
        if largest > limit:
            raise DivergenceError(
                f"flow_matching rose to {largest:.3g} by step {step}, above {limit:.3g} = "
                f"{self.runaway:g}^2 times its first value: the "
                f"numbers are finite, but the run is running away, and {self._kept()}. Lower the "
                "learning rate "
                f"({self.optimizer.param_groups[0]['lr']:.3g}) or the weight of what repels, or "
                "allow it with runaway=None."
            )

    def _kept(self) -> str:
        return (
            f"the last good checkpoint is {self.last_good}"
            if self.last_good
            else "no checkpoint was saved yet"
        )

    def _divergence(self, step: int, what: str) -> DivergenceError:
        return DivergenceError(
            f"{what} is not finite at step {step}; the parameters and the average are those of "
            f"step {step - 1}, and {self._kept()}. "
            "Lower the learning rate or the term's weight, or look at the batch."
        )

    def _update(self) -> None:
        fused = any(group.get("fused") for group in self.optimizer.param_groups)
        if fused:  # the kernel itself skips the update where found_inf is 1
            self.optimizer.found_inf, self.optimizer.grad_scale = 1.0 - self._ok, None  # pyright: ignore[reportAttributeAccessIssue]
        elif not self._ok.item():  # other optimizers cost one host read a step
            return
        self.optimizer.step()
        # where steps are checked at once, a bad one never comes here
        for average in self._averages.values():
            average.update_parameters(self.objective.model, None if self._at_once else self._ok)

    def save(
        self, directory: str | Path, *, config: Mapping[str, Any] | None = None, keep: int = 3
    ) -> Path:
        """Write a checkpoint of this step under `directory`; returns its path (see
        `checkpoint.save` for errors).

        A run that has diverged is not saved: DivergenceError. In a world of several ranks all of
        them call this and rank 0 writes; the others return `directory`.
        """
        self._check_health(self.step)
        weights = {f"objective.{k}": v for k, v in sharded.weights(self.objective).items()}
        for name, average in self._averages.items():
            weights |= {f"{name}.{k}": v for k, v in sharded.weights(average.module).items()}
        inner = sharded.optimizer_state(self.objective, self.optimizer)
        tensors = {
            f"{i}.{k}": v
            for i, entry in inner["state"].items()
            for k, v in entry.items()
            if isinstance(v, Tensor)
        }
        state = {
            "seed": self.seed,
            "averaged": self._averaged.n_averaged,
            "groups": _plain(inner["param_groups"]),
            "settings": self._settings(),
            "config": json.loads(json.dumps(dict(config or {}))),
            "versions": {
                "cfm_lite": cfm_lite.__version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        }
        written = self.world.on_main(
            lambda: checkpoint.save(directory, self.step, weights, tensors, state, keep=keep)
        )
        kept = written or Path(directory)
        self.last_good = kept
        return kept

    def resume(
        self,
        directory: str | Path,
        *,
        accept: Callable[[Mapping[str, Any]], None] = lambda config: None,
    ) -> "Trainer":
        """Go on from `directory` (one step-* folder, or the newest valid one in a folder of them),
        bit for bit.

        It may come from another number of ranks. `accept` is given the `config` that was saved with
        it, before anything changes, and may raise. Raises CheckpointError, CheckpointCorruptError,
        or ResumeMismatchError that lists what differs.
        """
        directory = Path(directory)
        path = (
            directory
            if (directory / checkpoint.MANIFEST).exists()
            else checkpoint.latest(directory)
        )
        dealt = sharded.is_sharded(self._wrapped)
        saved = checkpoint.load(path, "cpu" if dealt else self.parameters[0].device)
        accept(saved.state.get("config") or {})
        self._check_same(saved)
        averages = ((average.module, f"{name}.") for name, average in self._averages.items())
        for module, prefix in ((self.objective, "objective."), *averages):
            sharded.load_weights(
                module,
                {
                    k.removeprefix(prefix): v
                    for k, v in saved.weights.items()
                    if k.startswith(prefix)
                },
            )
        entries: dict[int, dict[str, Tensor]] = {}
        for key, value in saved.optimizer.items():
            index, name = key.split(".", 1)
            entries.setdefault(int(index), {})[name] = value
        sharded.load_optimizer(
            self.objective,
            self.optimizer,
            {"state": entries, "param_groups": saved.state["groups"]},
        )
        for average in self._averages.values():
            average.n_averaged = saved.state["averaged"]
        self.step, self.last_good = saved.step, path
        return self

    def _settings(self) -> dict[str, Any]:
        """What must be equal for a run to go on: a different value would silently make another run."""
        terms = {name: _plain(term) for name, term in self.objective.terms.items()}
        groups = self.optimizer.param_groups
        return {
            "terms": terms,
            "path": self.objective.path.name,
            "label_dropout": self.objective.label_dropout,
            "shard": self.objective.shard,
            "time": _plain(self.objective.law),
            "couple": _plain(self.objective.couple),
            "seed": self.seed,
            "ema_decay": self.ema_decay,
            "ema_warmup": self.ema_warmup,
            "ema2_decay": self.ema2_decay,
            "clip": self.clip,
            "precision": self.precision,
            "optimizer": type(self.optimizer).__name__,
            "lr": self._base_lr,
            **{
                name: [_plain(group[name]) for group in groups]
                for name in _DECIDES
                if name in self.optimizer.defaults
            },
        }

    def _check_same(self, saved: checkpoint.Checkpoint) -> None:
        mine = _said_once(json.loads(json.dumps(self._settings())))
        theirs = _said_once(_completed(saved.state, mine))
        diff = [
            f"{k}: saved {theirs.get(k)!r}, now {mine.get(k)!r}"
            for k in mine
            if mine[k] != theirs.get(k)
        ]
        have = {f"objective.{k}": tuple(v.shape) for k, v in self.objective.state_dict().items()}
        stored = {k: tuple(v.shape) for k, v in saved.weights.items() if k.startswith("objective.")}
        diff += [
            f"{k}: saved {stored.get(k)}, now {have.get(k)}"
            for k in sorted(have.keys() | stored.keys())
            if have.get(k) != stored.get(k)
        ]
        missing = [
            key
            for key in ("seed", "averaged", "groups", "settings", "step")
            if key not in saved.state
        ]
        diff += [f"{key} is missing" for key in missing]
        if diff:
            raise ResumeMismatchError(
                f"{saved.path} belongs to another run: {'; '.join(diff[:6])}. Start a new run, or "
                "give the settings of the old one."
            )


# what the optimizer's groups hold and a run depends on, beside the learning rate
_DECIDES = (
    "betas",
    "eps",
    "weight_decay",
    "momentum",
    "dampening",
    "nesterov",
    "amsgrad",
    "maximize",
)


def _completed(state: Mapping[str, Any], mine: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a checkpoint, and those that older ones do not name: from its groups, or what
    was the only value then.
    """
    theirs, groups = (
        {"ema2_decay": 0.0, "lr": mine["lr"], **state.get("settings", {})},
        state.get("groups", []),
    )
    return {
        name: [group.get(name) for group in groups] for name in _DECIDES if name in mine
    } | theirs


def _pair_of_betas(betas: Any) -> tuple[float, float]:
    """AdamW's two decays, each in [0, 1); ConfigError for anything else."""
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        raise ConfigError(
            f"betas is {betas!r:.60}; it must be two numbers in [0, 1), such as (0.9, 0.999)."
        )
    first, second = (
        check_number(f"beta{i}", beta, 0.0, 1.0, open_high=True) for i, beta in enumerate(betas, 1)
    )
    return first, second


_PARTS = ("x1", "y", "context")


def _as_batch(batch: Any) -> tuple[Any, ...]:
    """(x1, ...) of what the batches gave; DataError unless it is a tensor, one to three of them, or
    a mapping of x1, y and context.
    """
    if isinstance(batch, Mapping) and "x1" in batch and set(batch) <= set(_PARTS):
        batch = tuple(
            batch.get(name) for name in _PARTS[: 3 if batch.get("context") is not None else 2]
        )
    parts = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
    if 1 <= len(parts) <= 3 and isinstance(parts[0], Tensor) and parts[0].dim():
        return parts
    seen = (
        f"keys {list(batch)[:6]}"
        if isinstance(batch, Mapping)
        else f"{len(parts)} entries"
        if len(parts) > 1
        else "no more"
    )
    raise DataError(
        f"a batch has type {type(batch).__name__}, with {seen}; it must be a tensor x1, (x1, y), "
        "(x1, y, context), or a dict with these "
        'names. Convert each one, such as ({"x1": b["image"], "y": b["label"]} for b in batches).'
    )


def _check_optimizer(optimizer: Any, objective: nn.Module) -> None:
    """ConfigError unless the optimizer holds the parameters of the objective that are trained, all
    of them and no others.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(
            f"optimizer has type {type(optimizer).__name__}; it must be a torch.optim.Optimizer, "
            "or None for AdamW."
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ConfigError(
            "the optimizer is LBFGS, which asks for the loss several times a step; give one that "
            "does not, such as AdamW."
        )
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missed = [
        name for name, p in objective.named_parameters() if p.requires_grad and id(p) not in held
    ]
    if missed:
        raise ConfigError(
            f"the optimizer does not hold {', '.join(missed[:3])}, which would never be trained. "
            "Build it from objective.parameters(), or "
            "freeze them with requires_grad_(False)."
        )
    if held - {id(p) for p in objective.parameters()}:
        raise ConfigError(
            "the optimizer holds parameters that the objective does not have; build it from "
            "objective.parameters()."
        )


def _is_finite(tensors: Iterable[Tensor]) -> bool:
    """True if every entry is finite, whole tensors or parts of them on several ranks alike; False
    also if their norm is too large.
    """
    numbers = [
        x for x in tensors if x.is_floating_point() and x.itemsize > 1
    ]  # integers are always finite
    return math.isfinite(sharded.full(nn.utils.get_total_norm(numbers)))


def _said_once(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with the path named once, whichever edition saved them: the first wrote the
    functions of a path wherever one was given.
    """
    path = settings.get("path")

    def named(value: Any) -> Any:
        if isinstance(value, list):
            return [named(v) for v in value]
        if not isinstance(value, dict):
            return value
        if value.get("kind") == "Path":
            return value["name"]
        found = {k: named(v) for k, v in value.items()}
        if found.get("kind") == "Perturbed" and (
            found["path"] is None or found["space"] == "velocity"
        ):
            found["path"] = path  # in velocity space it is not used
        return found

    found = named(settings)
    if isinstance(found.get("time"), list) and found["time"][1:] == [[], {"path": "linear"}]:
        found["time"] = found["time"][
            0
        ]  # the first edition's law was linear where no path was given
    return found


def _plain(value: Any) -> Any:
    """Settings as plain JSON values: dataclasses by field, paths and callables by name."""
    if isinstance(value, paths.Path):
        return value.name
    if isinstance(value, functools.partial):
        return [_plain(value.func), _plain(value.args), _plain(value.keywords)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"kind": type(value).__name__} | {
            f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if isinstance(value, nn.Module):
        return {"kind": type(value).__name__} | {
            k: v
            for k, v in ((k, plain(v)) for k, v in vars(value).items())
            if isinstance(v, int | float | str) and k != "training"
        }
    if callable(value):
        return getattr(value, "__qualname__", type(value).__name__)
    return copy.deepcopy(plain(value))
