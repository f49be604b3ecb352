"""The training loop: draw, step, average. It yields; engine/ holds what keeps a run alive."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cfm_lite._internal.checks import check_count, plain
from cfm_lite.engine import compiled, optimizers, sharded
from cfm_lite.engine.average import Average
from cfm_lite.engine.batches import Batch, Running, micro_batches, shards_in, stream
from cfm_lite.engine.exchange import Exchange
from cfm_lite.engine.guard import Guard
from cfm_lite.engine.parallel import ALONE, World
from cfm_lite.engine.settings import PRECISIONS, Settings, autocast, check_objective, warmup
from cfm_lite.engine.state import State
from cfm_lite.objective import FlowMatching, Objective

__all__ = ["Trainer", "warmup"]


class Trainer:
    """Trains one objective; holds its optimizer, the averaged model `ema` and the step count.

    Draws are keyed by (seed, step). In a `world` of several ranks each gets whole shards of every
    batch; gradients and logged values are means, and logged numbers of rows are sums. A parameter
    that no rank uses does not move.

    Args:
        optimizer: one that holds every trained parameter; default fused AdamW(1e-3, decay 0).
        clip: the bound of the gradient norm, or None.
        ema_decay: in [0, 1); with `ema_warmup` at most (1 + n) / (10 + n) after n updates.
        ema2_decay: above 0 it keeps a second average, `ema2`.
        accumulate: the number of micro-batches in a batch; each holds whole shards.
        precision: "float32", or "bf16" (autocast; parameters and losses stay float32).
        schedule: a function of the step that gives a factor on lr, of at least 0.
        compile: True compiles the transformer blocks, or else the objective; None only on CUDA.
        runaway: stops a run, at a logged step, whose flow-matching error was above runaway^2 times
            its first value (at least 1), as with λK > 1 - 1 / runaway. None turns this off.
        parallel: "ddp" (every rank holds everything) or "fsdp" (a part; `ema` is collective). Under
            "fsdp" all ranks must run the same `blocks` in the same order (docs/own_network.md).
            DistributedError names the first that differ.

    Raises ConfigError for a value outside its range, and for parameters that are not finite.

    >>> from cfm_lite import models, objective
    >>> trainer = Trainer(objective.fm(models.MLP(2)))
    >>> [int(log["step"]) for log in trainer.run([torch.ones(8, 2)] * 2, steps=2)]
    [1, 2]
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
        settings = Settings(clip, ema_decay, ema_warmup, ema2_decay, seed, accumulate, precision,
                            log_every, runaway, parallel, schedule)  # fmt: skip
        in_parts = settings.in_parts(world)
        check_objective(objective, in_parts)
        own = {"lr": lr, "weight_decay": weight_decay, "betas": betas}
        optimizers.check_optimizer(optimizer, objective, parallel, **own)
        self.objective, self.world = objective, world
        self.seed, self.clip, self.precision = settings.seed, settings.clip, precision
        self.accumulate, self.log_every = settings.accumulate, settings.log_every
        self.schedule, self.step = schedule or warmup(0), 0
        world.start_alike(objective)
        self._averages = {
            name: Average(objective.model, decay, settings.ema_warmup)
            for name, decay in settings.decays.items()
        }
        device = next(objective.parameters()).device
        self.compiled = compiled.is_compiled(plain(compile), objective, device)
        averaged = [average.module for average in self._averages.values()]
        self._wrapped, self._forward = sharded.spread(
            objective, averaged, world, in_parts, PRECISIONS[precision], self.compiled
        )
        self.parameters = [p for p in objective.parameters() if p.requires_grad]
        self._exchange = Exchange(world, self._wrapped, self.parameters)
        self._forward = self._exchange.follow(self._forward)
        self.optimizer = optimizer or optimizers.make_optimizer(objective, **own)
        self._groups = optimizers.Groups(self.optimizer, objective)
        errors = (name for name, term in objective.terms.items() if isinstance(term, FlowMatching))
        self._guard = Guard(device, next(errors, None), settings.runaway, averaged)
        kept = optimizers.options_of(self.optimizer, objective, self.schedule) | settings.decisive
        self._state = State(objective, self._averages, self.optimizer, kept, self._guard)

    @property
    def ema(self) -> nn.Module:
        """The averaged model, a plain module: use it for sampling."""
        return self._averages["ema"].module

    @property
    def ema2(self) -> nn.Module | None:
        """The second average, None where `ema2_decay` is 0."""
        return self._averages["ema2"].module if "ema2" in self._averages else None

    @property
    def lr(self) -> float:
        """The learning rate of the last step (of the first group, where there are several)."""
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def last_good(self) -> Path | None:
        """The checkpoint that was saved or resumed last."""
        return self._guard.saved

    def run(self, batches: Iterable[Any], steps: int) -> Iterator[dict[str, Tensor]]:
        """Train for `steps` steps; yields {"step", "loss", term: value, "grad_norm"} after each.

        A step is done when its entry is asked for. `batches` gives x1, (x1, y) or (x1, y, context),
        or a dict with these names. Raises DivergenceError (nothing was updated), and DataError.
        """
        return Running(self._run(stream(batches, check_count("steps", steps))))

    def _run(self, source: Iterator[tuple[Batch, bool]]) -> Iterator[dict[str, Tensor]]:
        self._groups.check_same(self.objective.train())  # every part of it
        for batch, last in source:
            yield self._train_step(batch, last)

    def _train_step(self, batch: Batch, last: bool) -> dict[str, Tensor]:
        if not (self.objective.training and self.objective.model.training):
            self.objective.train()  # a look at held-out data has left it in evaluation mode
        log = self._state.noting(self._backward, batch)
        norm = optimizers.clip_gradients(self.parameters, self.clip)
        self._guard.watch(self.step + 1, {**log, "the gradient norm": norm})
        if last or (self.step + 1) % self.log_every == 0:
            self._exchange.check()
            self._guard.check(self.step + 1, self.lr)
        self._update()
        self.step += 1
        return {"step": torch.tensor(self.step, device="cpu"), **log, "grad_norm": norm}

    def _update(self) -> None:
        if optimizers.update(self.optimizer, self._guard.ok):
            for average in self._averages.values():
                average.update_parameters(self.objective.model, self._guard.ok)

    def _backward(self, batch: Batch) -> dict[str, Tensor]:
        """Gradients of the whole batch, micro-batch by micro-batch, and the mean loss and terms."""
        self._groups.begin(self.schedule(self.step), self.step)
        parts = micro_batches(batch, self.accumulate, self.objective.shard)
        rows, shard, log = batch[0].shape[0], self.objective.shard, {}
        first = self.world.rank * shards_in(rows, shard)
        for part in parts:
            share = part[0].shape[0] / rows
            with self._exchange.micro_batch(self.step + 1, part is parts[0], part is parts[-1]):
                self.objective.at(self.seed, self.step, first)
                with autocast(self.precision, part[0].device):
                    total, values = self._forward(*part)
                optimizers.backward(total, share)
            self._exchange.add(log, {**values, "loss": total.detach()}, share, self.objective.terms)
            first += shards_in(part[0].shape[0], shard)
        return self._exchange.mean(log)

    def save(
        self, directory: str | Path, *, config: Mapping[str, Any] | None = None, keep: int = 3
    ) -> Path:
        """Write a checkpoint of this step under `directory` and return its path.

        All ranks call this; rank 0 writes, and the others return `directory`. Raises
        DivergenceError for a diverged run, and what `checkpoint.save` raises.
        """
        self._exchange.check()
        self._guard.check(self.step, self.lr)
        self._guard.saved = self._state.save(directory, self.step, config or {}, self.world, keep)
        return self._guard.saved

    def resume(
        self,
        directory: str | Path,
        *,
        accept: Callable[[Mapping[str, Any]], None] = lambda config: None,
    ) -> "Trainer":
        """Resume from `directory`, a step-* folder or a folder of them (its newest valid one).

        It may come from another number of ranks. `accept` gets the saved `config` first, and may
        raise. Raises CheckpointError, CheckpointCorruptError, or ResumeMismatchError.
        """
        self.step, self._guard.saved = self._state.load(directory, accept, self.world)
        return self
