"""An objective is a weighted sum of terms: L = flow matching - λ repulsion + w dispersive + ...

A new regulariser is one more element of the tuple. Every term draws from a generator of its own, so
a term with weight 0 leaves the run bit for bit as it was. The terms themselves stand in terms.py;
here they meet a model.
"""

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from cfm_lite import draws
from cfm_lite._internal.checks import (
    check_count,
    check_floating,
    check_labels,
    check_module,
    check_number,
    check_same_shape,
    check_unit_interval,
    full_precision,
    is_finite,
    on_host,
    plain,
    promote,
    repulsion_weight,
    seen,
    unwritten,
    warn_of_gain,
)
from cfm_lite._internal.lazy import outside_graphs
from cfm_lite._internal.networks import (
    as_features,
    as_velocity_of,
    asked,
    check_caption,
    check_keywords,
    check_model,
    classes_of,
    evaluating,
    null_condition,
    takes,
    takes_captions,
    takes_labels,
)
from cfm_lite.errors import ConfigError
from cfm_lite.negatives import Negatives, in_batch, perturbed
from cfm_lite.paths import LINEAR, FlowSample, Path, check_path, on_path
from cfm_lite.perturbations import channel_shuffle
from cfm_lite.terms import (
    Alignment,
    ConditionRepulsion,
    Contrastive,
    Dispersive,
    Draw,
    Evaluated,
    FlowMatching,
    Repulsion,
    Term,
    noise_like,
)

__all__ = [
    "Alignment",
    "ConditionRepulsion",
    "Contrastive",
    "Dispersive",
    "Draw",
    "Evaluated",
    "FlowMatching",
    "Objective",
    "Repulsion",
    "Term",
    "delta_fm",
    "dispersive",
    "fm",
    "repa",
    "vecor",
]


class Objective(nn.Module):
    """Draws noise and times, runs the model once, and sums the terms.

    Calling it gives the total (a scalar) and {term name: unweighted value}, with
    `repulsion_left_out` where rows can lack a negative. It takes data `x1` (B, *dims), labels `y`
    (B,) in [0, num_classes - 1] or None, and an optional `context` (B, ...) for an alignment
    teacher. DDP and torch.compile wrap this module.

    By default noise and times come from torch's global generator. After `at(seed, step)` every draw
    is keyed by (seed, step, shard), so that neither accumulation nor the number of ranks changes a
    run.

    Args:
        model: `model(x, t, y)` returns a velocity, and `model.forward_features(x, t, y, blocks)`
            also features.
        path: given once, here: times and negatives with a keyword `path` follow it.
        terms: what is summed.
        time: a time distribution of draws.py.
        couple: a pairing of noise with data of draws.py.
        label_dropout: the probability that a label is dropped, only in training mode. After
            `eval()` the losses are those of the given labels.
        shard: how many rows share noise, negatives, dispersive batches and label dropout; None is
            the whole batch.

    Raises:
        ConfigError: a repulsion whose λK reaches the weight of flow matching (the loss would have
            no minimum), times or negatives of another path, two terms of one name, labels out of
            range, or label dropout without a null label or null condition.

    >>> from cfm_lite.models import MLP
    >>> loss, values = Objective(MLP(2), terms=(FlowMatching(), Repulsion(0.05)))(torch.ones(8, 2))
    >>> list(values)
    ['flow_matching', 'repulsion']
    """

    def __init__(
        self,
        model: nn.Module,
        path: Path = LINEAR,
        terms: Sequence[Any] = (FlowMatching(),),
        time: Callable[..., Tensor] = draws.uniform_time,
        couple: Callable[..., Any] = draws.independent,
        label_dropout: float = 0.1,
        shard: int | None = None,
    ) -> None:
        super().__init__()
        check_module(model=model)
        check_path(path)
        # asked now: a wrong signature would fail in the first step, after the data were loaded
        keywords = ("generator", "device", *(("path",) if takes(time, "path") else ()))
        check_keywords("time", time, "time(n, *, generator, device)", 1, keywords)
        keywords = ("generator",) if takes(couple, "generator") else ()
        check_keywords("couple", couple, "couple(x0, x1, y)", 3, keywords)
        self.model, self.path, self.time, self.couple = model, path, time, couple
        self.label_dropout = check_number("label_dropout", label_dropout, 0.0, 1.0)
        self.shard = shard if shard is None else check_count("shard", shard)
        self.terms: dict[str, Any] = _named(terms)
        # registered, so that the projector of an alignment is trained, moved and saved too
        self.modules_of_terms = nn.ModuleDict(
            {name: term for name, term in self.terms.items() if isinstance(term, nn.Module)}
        )
        # the blocks of all terms: one forward pass gives the features that any of them reads
        self.blocks = tuple(
            sorted({plain(block) for term in self.terms.values() for block in term.blocks})
        )
        self._labelled = takes_labels(model)
        self._couple_draws = takes(couple, "generator")
        self._key: tuple[int, int, int] | None = None
        self._calls = 0
        self._weights: tuple[Tensor, ...] = ()
        # beside `time`, which stays as it was given, so that `plus` can hand it on
        self.time_distribution = on_path(time, path, "time")
        _check_terms(self.terms, plain(getattr(model, "depth", None)))
        for term in self.terms.values():
            # a negative of another path is a velocity that no x_t of this path has
            on_path(getattr(term, "negatives", term), path, "negatives")
        check_model(model, self.blocks, self.label_dropout)

    def extra_repr(self) -> str:
        """What `print(objective)` shows beside the model."""
        return (
            f"path={self.path.name}, terms={list(self.terms)}, label_dropout={self.label_dropout}, "
            f"shard={self.shard}"
        )

    def train(self, mode: bool = True) -> "Objective":
        """Set the mode, as every module does. Replaced parameters are looked up again."""
        self._weights = ()
        return super().train(mode)

    def _found_weights(self) -> tuple[Tensor, ...]:
        # kept: a walk through the modules takes longer than the draw of a small step
        self._weights = tuple(self.model.parameters())
        return self._weights

    def plus(self, *terms: Any) -> "Objective":
        """A new objective on the same model with further terms, in the same mode.

        >>> from cfm_lite.models import MLP
        >>> list(delta_fm(MLP(2)).plus(Dispersive(0.5, block=2)).terms)
        ['flow_matching', 'repulsion', 'dispersive']
        """
        every = (*self.terms.values(), *terms)
        made = Objective(
            self.model, self.path, every, self.time, self.couple, self.label_dropout, self.shard
        )
        made.training = self.training  # its own alone: the parts of the model keep theirs
        return made

    def at(self, seed: int, step: int, first_shard: int = 0) -> "Objective":
        """Key every draw of the next calls by (seed, step, shard number).

        Shards are counted from `first_shard`.

        >>> from cfm_lite.models import MLP
        >>> objective, x1 = fm(MLP(2)), torch.ones(8, 2)
        >>> bool(objective.at(0, 1)(x1)[0] == objective.at(0, 1)(x1)[0])
        True
        """
        # this runs once a step, and Module.__setattr__ takes as long as a kernel
        vars(self)["_key"] = (seed, step, first_shard)
        return self

    def forward(
        self, x1: Tensor, y: Tensor | None = None, context: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(total, {name: unweighted value}) of data `x1` (B, *dims) and conditions `y`.

        The total is a scalar, in float32 at least, that can be differentiated. The values are
        detached, for the log.

        Args:
            y: labels (B,) in [0, num_classes - 1], captions for a model of captions, or None.
            context: (B, ...) for the teacher of an alignment, in place of the data.

        Raises:
            ConfigError: data without dims or rows, of integers, or not finite; conditions that the
                model does not take; a time, coupling, negatives or model that gives another shape.

        >>> from cfm_lite.models import MLP
        >>> total, values = fm(MLP(2, num_classes=3))(torch.zeros(6, 2), torch.arange(6) % 3)
        >>> total.shape, list(values)
        (torch.Size([]), ['flow_matching'])
        """
        y = self._check(x1, y)
        sample, prepared, shards = self._draw(promote(x1), y)  # pyright: ignore[reportCallIssue]
        # once: all terms share v, so ΔFM and VeCoR cost no second forward pass
        v, features = self._run(sample.x_t, sample.t, sample.y, self.blocks)
        total: Tensor | None = None
        values: dict[str, Tensor] = {}
        for name, term in self.terms.items():
            scale = term.sign * term.weight
            run = self._run if scale else self._run_aside
            batch = Evaluated(sample, v, features, prepared[name], shards, run, context)
            if scale == 0:  # a weight of 0 adds nothing, not even a NaN
                with torch.no_grad():
                    values[name] = term(batch)
            else:
                if term.blocks:
                    _check_followed(name, v, {block: features[block] for block in term.blocks})
                with self._unwritten(f"what the term {name!r} calls", *sample, context):
                    values[name] = term(batch)
                weighted = values[name] if scale == 1 else scale * values[name]
                # summed in float32 at least
                total = promote(weighted) if total is None else total + weighted
            # logged, because rows without a negative weaken λ, and the loss does not show it
            counted = term.counts(prepared[name]) if hasattr(term, "counts") else {}
            values |= {f"{name}_{what}": count for what, count in counted.items()}
        if total is None:
            total = v.new_zeros((), dtype=promote(v).dtype)
        # a kept log would otherwise keep the graph of its step
        return total, {name: value.detach() for name, value in values.items()}

    def _run(
        self, x: Tensor, t: Tensor, y: Tensor | None, blocks: Sequence[int]
    ) -> tuple[Tensor, dict[int, Tensor]]:
        with self._unwritten("the model", x, t, y):
            return asked(self.model, y, functools.partial(self._call, x, t, y, blocks))

    def _unwritten(self, who: str, *tensors: Any) -> contextlib.AbstractContextManager[None]:
        """ConfigError if a function of the caller, asked inside, writes into the `tensors`."""
        # once, as a look at every step takes time; and not in a graph, which would count the calls
        if torch.compiler.is_compiling() or self._calls != 1:
            return contextlib.nullcontext()
        return unwritten(who, *(part for part in tensors if part is not None))

    def _run_aside(
        self, x: Tensor, t: Tensor, y: Tensor | None, blocks: Sequence[int]
    ) -> tuple[Tensor, dict[int, Tensor]]:
        # for a weight of 0: dropout would draw, and batch norm would learn, from a second pass
        with evaluating(self.model):
            return self._run(x, t, y, blocks)

    def _call(
        self, x: Tensor, t: Tensor, y: Tensor | None, blocks: Sequence[int]
    ) -> tuple[Tensor, dict[int, Tensor]]:
        # without features a plain call: a network of your own then needs no forward_features
        if not blocks:
            v = self.model(x, t, y) if self._labelled else self.model(x, t)
            return as_velocity_of(v, x), {}
        features: Any = self.model.forward_features
        return as_features(features(x, t, y, blocks=blocks), x, blocks)

    @outside_graphs
    @full_precision()
    def _draw(self, x1: Tensor, y: Tensor | None) -> tuple[FlowSample, dict[str, Any], list[slice]]:
        """Everything random, outside any compiled graph.

        The result is the sample, what each term prepared, and the shards as slices.
        """
        # as under torch.set_default_dtype(torch.float64): data in float32 follow the weights
        if _take_float64(self._weights or self._found_weights()):
            x1 = x1.double()
        # every random choice lives inside a shard, so a batch may be cut between shards
        size = self.shard or max(1, len(x1))
        shards = [slice(i, min(i + size, len(x1))) for i in range(0, len(x1), size)]
        # without `at` each call must draw anew, though all have one seed
        vars(self)["_calls"] += 1
        parts = [
            self._draw_shard(x1[rows], None if y is None else y[rows], i)
            for i, rows in enumerate(shards)
        ]
        x0, x1, t, y, dropped = map(_joined, zip(*parts))
        # never in half precision, which near t = 1 could not tell x_t from x1
        x_t, u_t = self.path.interpolate(x0, x1, t)
        sample = FlowSample(x0, x1, t, x_t, u_t, y)
        prepared = {}
        for name, term in self.terms.items():
            # keyed by the name of the term: one more term changes no draw of the others
            generators = _Generators(self._generator, x1.device, name, len(shards))
            draw = Draw(sample, dropped, shards, generators, self.path, self.time_distribution)
            with self._unwritten(f"what the term {name!r} calls", *sample):
                prepared[name] = term.prepare(draw)
        return sample, prepared, shards

    def _draw_shard(
        self, x1: Tensor, y: Tensor | None, shard: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
        # without `at`: the global generator, so that torch.manual_seed repeats a loop of your own
        g = self._generator(x1.device, shard, "draw") if self._key else None
        x0 = noise_like(x1, g)
        t = _times(self.time_distribution(len(x1), generator=g, device=x1.device), x1)
        if self._calls == 1:  # once: a look at each step's times takes longer than their draw
            check_unit_interval(**{"what time gave": t})
        t = t.to(x1.dtype)
        if self.path.train_end < 1:  # u_t of VP is infinite at t = 1, so its times end just before
            t = t.clamp(max=self.path.train_end)
        # a key of its own: a random coupling leaves noise and times as they were
        own = self._couple_draws
        drawn = {"generator": self._generator(x1.device, shard, "couple")} if own else {}
        # labels are dropped after the pairing, which may use them
        with self._unwritten("couple", x1, y):  # the caller's own; the noise is nobody's
            x0, x1, y = _coupled(self.couple(x0, x1, y, **drawn), x1)
        if y is None:
            return x0, x1, t, None, None
        # a validation loss asks for the given labels: dropped ones are another problem
        p = self.label_dropout if self.training else 0.0
        null = null_condition(self.model, y) if p else y
        # g draws these last, so another p leaves noise and times as they were
        return x0, x1, t, *draws.drop_conditions(y, p, null, generator=g)

    def _generator(self, device: torch.device, shard: int, purpose: str) -> Generator:
        # without `at`: torch's own seed, and another number for each call
        seed, step, first = self._key or (torch.initial_seed(), self._calls, 0)
        return draws.keyed_generator(device, seed, step, first + shard, purpose)

    def _check(self, x1: Tensor, y: Tensor | None) -> Tensor | None:
        check_floating(x1=x1)
        if x1.dim() < 2 or not len(x1):
            raise ConfigError(
                f"x1 has shape {tuple(x1.shape)}; it must be (B, *dims) with at least one row."
            )
        # on a device the trainer's guard finds them, without a read here
        if on_host(x1) and not is_finite(x1):
            bad = (~promote(x1).flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
            raise ConfigError(
                f"x1 holds NaN or infinity in rows {bad[:8]}; every value must be finite. Clean "
                "the data first."
            )
        if y is None:
            return None
        if not self._labelled:
            raise ConfigError(
                f"y was given and {type(self.model).__name__}.forward takes only (x, t); add a "
                "third argument y, or give y=None."
            )
        if takes_captions(self.model):
            return check_caption(y, x1)
        classes = classes_of(self.model)
        if not classes and isinstance(y, Tensor) and y.dim() > 1:
            raise ConfigError(
                f"y has {seen(y)} and the model takes neither labels nor captions; for captions "
                'set condition = "captions" (docs/own_network.md shows how), for labels (B,) '
                "num_classes, or give y=None."
            )
        if not classes:
            raise ConfigError(
                f"labels were given but the model has num_classes = {classes!r}; build it with "
                "num_classes, or give y=None."
            )
        # the null label is no class: only dropout puts it in
        return check_labels(y, x1, classes - 1)


class _Generators(Sequence[Generator]):
    """A generator for each shard, made when it is first used: most terms draw nothing."""

    def __init__(
        self, make: Callable[..., Generator], device: torch.device, purpose: str, count: int
    ) -> None:
        self._make, self._device, self._purpose = make, device, purpose
        self._made: list[Generator | None] = [None] * count

    def __len__(self) -> int:
        return len(self._made)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        if self._made[i] is None:
            self._made[i] = self._make(self._device, range(len(self))[i], self._purpose)
        return self._made[i]


def _take_float64(weights: Sequence[Tensor]) -> bool:
    if not any(p.dtype == torch.float64 for p in weights):
        return False
    # where there are matrices they take the data; a single scale in float64 says nothing
    matrices = [p.dtype == torch.float64 for p in weights if p.dim() > 1]
    return any(matrices) if matrices else True


def _joined(shards: Sequence[Any]) -> Any:
    """The rows of all shards in one tensor; None where there are none."""
    if shards[0] is None:
        return None
    # the whole batch is mostly one shard, and cat would copy it
    alone = len(shards) == 1 and shards[0].is_contiguous()
    return shards[0] if alone else torch.cat(list(shards))


def _times(t: Any, x1: Tensor) -> Tensor:
    if not isinstance(t, Tensor) or t.shape != x1.shape[:1] or not t.is_floating_point():
        tensor = isinstance(t, Tensor)
        shown = f"a tensor {tuple(t.shape)} of {t.dtype}" if tensor else type(t).__name__
        raise ConfigError(
            f"time gave {shown}; it must give a floating tensor ({len(x1)},), one time in [0, 1] "
            "per row."
        )
    return t


def _coupled(triple: Any, x1: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """(x0, x1, y) of what a coupling returned, which must be such a triple of as many rows."""
    if not isinstance(triple, tuple | list) or len(triple) != 3:
        raise ConfigError(
            f"couple gave {type(triple).__name__}; it must give (x0, x1, y), the noise, the data "
            "and the labels."
        )
    x0, data, y = triple
    check_same_shape(x0=x0, x1=data, **{"the x1 it was given": x1})
    if y is not None and (not isinstance(y, Tensor) or y.shape[:1] != x1.shape[:1]):
        raise ConfigError(
            f"couple gave y of type {type(y).__name__}; it must be None or labels ({len(x1)},)."
        )
    # a coupling may come back from NumPy in float64; the run keeps the dtype of its data
    return promote(x0).to(x1.dtype), promote(data).to(x1.dtype), y


def _check_followed(name: str, v: Tensor, features: Mapping[int, Tensor]) -> None:
    """ConfigError for features without a gradient where the velocity has one: a term would change
    nothing of the network.
    """
    for block, h in features.items():
        if v.requires_grad and not h.requires_grad:
            raise ConfigError(
                f"{name} reads features of block {block} that carry no gradient, so it would "
                "change nothing of the network. Return them without .detach(), and do not freeze "
                "all that is before them."
            )


def _snake(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() and i else c.lower() for i, c in enumerate(name))


def _named(terms: Sequence[Any]) -> dict[str, Any]:
    if (
        not isinstance(terms, Sequence)
        or not terms
        or not all(hasattr(term, "weight") and hasattr(term, "blocks") for term in terms)
    ):
        raise ConfigError(
            "terms must be a tuple of terms: an objective needs at least one term; usually the "
            "first is FlowMatching()."
        )
    for kind in terms:
        if isinstance(kind, type):
            raise ConfigError(
                f"terms holds the class {kind.__name__}; each term must be an object. Make one: "
                f"{kind.__name__}(...)."
            )
    names = [getattr(term, "name", None) or _snake(type(term).__name__) for term in terms]
    for name, term in zip(names, terms):
        _check_name(name, isinstance(term, nn.Module))
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            f"two terms are called {twice[0]!r}; names must differ. Give one of them name='...'."
        )
    return dict(zip(names, terms))


def _check_name(name: Any, is_module: bool) -> None:
    """ConfigError for a name that a trainer's log or torch has another use for."""
    taken = ("loss", "step", "grad_norm")
    if not isinstance(name, str) or name in taken:
        raise ConfigError(
            f"a term is called {name!r:.60}; it must be a text other than {', '.join(taken)}, "
            "which a log holds already. Give it another name='...'."
        )
    # torch makes the name part of those of its parameters
    if is_module and ("." in name or hasattr(nn.ModuleDict, name)):
        raise ConfigError(
            f"a term with parameters is called {name!r}; torch allows no dot in such a name, and "
            "no method of a ModuleDict. Give it another name='...'."
        )


def _check_terms(terms: Mapping[str, Any], depth: int | None) -> None:
    for name, term in terms.items():
        check_number(f"the weight of {name}", term.weight, 0.0, float("inf"))
        for block in term.blocks:
            check_count(f"the block of {name}", block)
            if depth is not None and not 1 <= block <= depth:
                raise ConfigError(
                    f"{name} reads block {block}; this model has blocks 1 to {depth}."
                )
    # all terms together have a minimum as long as the attraction outweighs the repulsion
    attract = sum(term.weight for term in terms.values() if isinstance(term, FlowMatching))
    repel = [term for term in terms.values() if isinstance(term, Repulsion)]
    if not attract and any(term.weight for term in repel):
        raise ConfigError(
            "the terms repel and nothing attracts, so the loss has no minimum. Start the terms "
            "with FlowMatching(), whose weight must be above λK."
        )
    for term in repel:
        # one by one first: then the message tells λ and K of the term that is too strong
        repulsion_weight(term.weight, term.k, attract)
    # the factor of |v|^2 in the loss is attract - total: at 0 it has no minimum
    total = sum(term.weight * term.k for term in repel)
    if total and total >= attract:
        raise ConfigError(
            f"the sum of λK over the repulsions is {total:g}. It must stay below {attract:g}, the "
            "weight of flow matching: otherwise the loss has no minimum. Use smaller weights."
        )
    if attract:
        # the bound holds, but the optimum has the factor 1 / (1 - total / attract)
        warn_of_gain(total / attract)


def fm(model: nn.Module, **settings: Any) -> Objective:
    """Plain flow matching; `settings` are those of `Objective`.

    >>> from cfm_lite.models import MLP
    >>> list(fm(MLP(2)).terms)
    ['flow_matching']
    """
    return Objective(model, **settings)


def delta_fm(
    model: nn.Module,
    weight: float = 0.05,
    *,
    negatives: Negatives = in_batch,
    contrast_null: bool = True,
    **settings: Any,
) -> Objective:
    """Contrastive flow matching, with λ = `weight` in [0, 1).

    `contrast_null` False leaves out rows whose label was dropped.

    Raises:
        ConfigError: a weight outside [0, 1), and as `Objective` does.

    Reference: Stoica et al. 2025 (arXiv:2506.05350), eq. 6; λ = 0.05.

    >>> from cfm_lite.models import MLP
    >>> delta_fm(MLP(2), weight=0.05).terms["repulsion"].weight
    0.05
    """
    terms = FlowMatching(), Repulsion(weight, negatives, contrast_null)
    return Objective(model, terms=terms, **settings)


def vecor(
    model: nn.Module,
    weight: float = 0.05,
    k: int = 1,
    perturb: Callable[..., Tensor] = channel_shuffle,
    space: str = "velocity",
    *,
    codec: Any = None,
    path: Path = LINEAR,
    **settings: Any,
) -> Objective:
    """Velocity contrastive regularisation, with λ = `weight` and 0 <= λk < 1.

    The other arguments are those of `negatives.perturbed`.

    Raises:
        ConfigError: λk >= 1, a perturbation without a keyword `generator`, and as `Objective` does.

    Reference: Hong et al. 2025 (arXiv:2511.18942); λ = 0.05, k = 1.

    >>> from cfm_lite.models import MLP
    >>> vecor(MLP(2), weight=0.1, k=3).terms["repulsion"].k
    3
    """
    # checked under the name that the caller gave: `perturbed` would speak of a transform
    check_keywords("perturb", perturb, "perturb(x, *, generator=None)", 1, ("generator",))
    # no path: negatives without one follow that of the objective
    negatives = perturbed(perturb, space=space, k=k, codec=codec)
    return Objective(model, path, terms=(FlowMatching(), Repulsion(weight, negatives)), **settings)


def dispersive(
    model: nn.Module,
    weight: float | None = None,
    tau: float = 0.5,
    block: int | None = None,
    *,
    variant: str = "infonce_l2",
    **settings: Any,
) -> Objective:
    """Dispersive loss after `block`, counted from 1; by default a quarter of the depth.

    `weight` None is 0.5 for the forms that are means over pairs of rows. The covariance form is a
    sum over the d (d - 1) pairs of features, so there it is 0.5 / (d (d - 1)): half the mean
    squared correlation, between 0 and 0.5. d is the model's `hidden_size`, times the tokens of a
    SiT. Give the weight for a network of your own with tokens.

    Raises:
        ConfigError: the covariance form without a weight, for a model without `hidden_size`.

    Reference: Wang and He 2025 (arXiv:2506.09027); weight 0.5, tau 0.5.

    >>> from cfm_lite.models import MLP
    >>> dispersive(MLP(2, depth=4)).terms["dispersive"].block
    1
    """
    check_module(model=model)
    weight = _spreading_weight(model, variant) if weight is None else weight
    depth = plain(getattr(model, "depth", None)) or 1  # without a depth the first block
    first = max(1, depth // 4) if block is None else check_count("block", block)
    term = Dispersive(weight, first, variant, tau)
    return Objective(model, terms=(FlowMatching(), term), **settings)


def _spreading_weight(model: Any, variant: str) -> float:
    """`Dispersive.usual_weight` for the features of this network."""
    if variant != "covariance":
        return Dispersive.usual_weight(variant, 1)
    width, positions = plain(getattr(model, "hidden_size", None)), getattr(model, "pos_embed", None)
    if not isinstance(width, int):
        raise ConfigError(
            "weight is None. The covariance form needs one that fits the number of features d. "
            "This network does not give d. Use weight = 0.5 / (d * (d - 1)), where d is the size "
            "of one sample's features."
        )
    # a table of positions (1, T, D) has a row for each token
    tokens = positions.shape[1] if isinstance(positions, Tensor) and positions.dim() == 3 else 1
    return Dispersive.usual_weight(variant, width * tokens)


def repa(
    model: nn.Module, teacher: Any, weight: float = 0.5, block: int = 8, **settings: Any
) -> Objective:
    """Representation alignment with a frozen `teacher` of `.dim` features per token.

    Raises:
        ConfigError: a model without `hidden_size`, or a teacher without `dim`.

    Reference: Yu et al. 2024 (arXiv:2410.06940); weight 0.5, block 8.

    >>> from cfm_lite.models import MLP
    >>> teacher = torch.nn.Identity()
    >>> teacher.dim = 2
    >>> list(repa(MLP(2), teacher, block=1).terms)
    ['flow_matching', 'alignment']
    """
    check_module(model=model)
    hidden, dim = plain(getattr(model, "hidden_size", None)), plain(getattr(teacher, "dim", None))
    # the projector is made now, so that an optimizer built next holds its weights
    for what, value in (
        (f"{type(model).__name__}.hidden_size", hidden),
        (f"{type(teacher).__name__}.dim", dim),
    ):
        if not isinstance(value, int):
            raise ConfigError(
                f"{what} is {value!r:.60}; it must be the number of features per token. Set it, or "
                "use Alignment(weight, block, hidden_size, teacher, teacher_dim) and pass the "
                "sizes to it."
            )
    terms = FlowMatching(), Alignment(weight, block, hidden, teacher, dim)
    return Objective(model, terms=terms, **settings)
