"""The terms of an objective: each draws what its loss needs, and computes the loss.

A term names its `weight` and the `blocks` whose features it reads. `prepare` draws everything that
is random. The call is differentiable and returns the unweighted value. `sign` is -1 for a term that
is subtracted. CONTRIBUTING.md shows a term in 20 lines.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Generator, Tensor, nn

from cfm_lite import losses
from cfm_lite._internal.checks import (
    check_callable,
    check_choice,
    check_count,
    check_keep,
    check_number,
    check_tensor,
    on_host,
    plain,
    seen,
    warn_once,
)
from cfm_lite._internal.networks import check_keywords, evaluating, takes
from cfm_lite.errors import ConfigError
from cfm_lite.negatives import Negatives, in_batch, other_condition
from cfm_lite.paths import FlowSample, Path, on_path

__all__ = [
    "Alignment",
    "ConditionRepulsion",
    "Contrastive",
    "Dispersive",
    "Draw",
    "Evaluated",
    "FlowMatching",
    "Repulsion",
    "Term",
    "noise_like",
]


class Draw(NamedTuple):
    """What a term may use to prepare itself, with one generator of its own per shard.

    `sample.y` holds the labels that the model will see: the null label in the rows `dropped`.
    """

    sample: FlowSample
    dropped: Tensor | None
    shards: Sequence[slice]
    generators: Sequence[Generator]
    path: Path
    time: Callable[..., Tensor]

    def each(self) -> list[tuple[FlowSample, Generator]]:
        """(sample, generator) shard by shard."""
        return [(_rows(self.sample, rows), g) for rows, g in zip(self.shards, self.generators)]


class Evaluated(NamedTuple):
    """What a term may read: the sample, the model's velocity `v`, and what the term asked for."""

    sample: FlowSample
    v: Tensor
    features: Mapping[int, Tensor]
    prepared: Any
    shards: Sequence[slice]
    model: Callable[..., Any]
    context: Tensor | None


class Term(Protocol):
    """The interface of a term."""

    weight: float
    name: str | None
    sign: float
    blocks: tuple[int, ...]

    def prepare(self, draw: Draw) -> Any:
        """Draw everything random for one batch; the call finds it in `batch.prepared`."""
        ...

    def __call__(self, batch: Evaluated) -> Tensor:
        """The unweighted value, a scalar that can be differentiated."""
        ...


class _Plain:
    """A frozen dataclass that turns its numbers into Python's own, which JSON can hold."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            # a frozen dataclass refuses setattr; a NumPy weight could not be saved as JSON
            object.__setattr__(self, name, plain(value))


class _Deterministic(_Plain):
    """A term that draws nothing."""

    sign = 1.0
    blocks: tuple[int, ...] = ()

    def prepare(self, draw: Draw) -> Any:
        """None: nothing here is random."""
        return None


class _Spreading(_Plain):
    """A term with a loss of table 1. ConfigError for an option that its variant does not have."""

    variant: str
    tau: float
    options: Mapping[str, Any]
    _read_by: ClassVar[Mapping[str, Sequence[str]]]  # the variants that have each option
    _loss_of: ClassVar[Callable[..., Tensor]]  # of features, and of others near them

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("variant", self.variant, losses.VARIANTS)
        if not isinstance(self.options, Mapping) or "tau" in self.options:
            raise ConfigError(
                f"options is {self.options!r:.60}; it must be a dict from names to values. tau is "
                "no option: give tau=... beside it."
            )
        for name, value in self.options.items():
            self._check_read(name, value, self._read_by.get(name, ()))
        # the loss itself looks at the values, now and not in the first step
        self._loss_of(torch.zeros(2, 1, device="cpu", dtype=torch.float32))
        # the default of tau counts as not given: a recipe hands it to every variant
        if self.tau != type(self).tau:
            self._check_read("tau", self.tau, losses.WITH_TAU)

    def _check_read(self, name: str, value: Any, read_by: Sequence[str]) -> None:
        if self.variant not in read_by:
            use = f", or use {' or '.join(read_by)}" if read_by else ""
            raise ConfigError(
                f"{name} is {value!r:.60} and the variant {self.variant!r} has no {name}; leave it "
                f"out{use}."
            )


@dataclass(frozen=True)
class FlowMatching(_Deterministic):
    """Regress the velocity: mean |v - u_t|^2.

    Reference: Lipman et al. 2023 (arXiv:2210.02747), eq. 14.

    >>> FlowMatching()
    FlowMatching(weight=1.0, name=None)
    """

    weight: float = 1.0
    name: str | None = None

    def __call__(self, batch: Evaluated) -> Tensor:
        """The loss, a scalar of at least 0."""
        # u_t of the pair, not E[u_t | x_t], which is unknown: both losses have the same gradient
        # (Lipman et al. 2023, theorem 2)
        return losses.flow_matching(batch.v, batch.sample.u_t)


@dataclass(frozen=True)
class Repulsion(_Plain):
    """Push the velocity away from wrong ones; this term is subtracted.

    Negatives with an argument `path` get that of the objective.

    Args:
        weight: λ, with λK below the weight of flow matching.
        contrast_null: False leaves out rows whose label was dropped.
        rescale: True divides by the number of kept rows of each shard, as DeltaFM does of its
            batch.

    Raises:
        ConfigError: `negatives` without a keyword `generator`.

    Reference: Stoica et al. 2025 (arXiv:2506.05350), eq. 6; Hong et al. 2025 (arXiv:2511.18942).

    >>> Repulsion(0.05).k
    1
    """

    weight: float
    negatives: Negatives = in_batch
    contrast_null: bool = True
    name: str | None = None
    rescale: bool = False
    # the sign stands here alone: a weight is never negative
    sign = -1.0
    blocks = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        keywords = ("generator", "path") if takes(self.negatives, "path") else ("generator",)
        call = "negatives(sample, *, generator=None)"
        check_keywords("negatives", self.negatives, call, 1, keywords)

    @property
    def k(self) -> int:
        """How many wrong velocities each row is pushed away from."""
        # asked before anything is drawn, so that λK < 1 is checked when the objective is built
        return int(getattr(self.negatives, "k", 1))

    def prepare(self, draw: Draw) -> tuple[Tensor, Tensor | None]:
        """(u_neg, keep) of the whole batch, drawn shard by shard.

        Raises:
            ConfigError: negatives of another shape, or another number K than they declare.
        """
        negatives, u_t = on_path(self.negatives, draw.path, "negatives"), draw.sample.u_t
        # a batch is cut only between shards, so accumulation and ranks change no negative
        parts = [
            _with_keep(negatives(sample, generator=g), sample.u_t) for sample, g in draw.each()
        ]
        several = parts[0][0].dim() - u_t.dim()  # 1 for (K, B, *dims), 0 for (B, *dims)
        u_neg = torch.cat([wrong for wrong, _ in parts], dim=several)
        k = len(u_neg) if several else 1
        if k != self.k:  # the bound weight * K < 1 was checked with the declared K
            raise ConfigError(
                f"the negatives gave K = {k} wrong velocities and declare k = {self.k}; set their "
                f"attribute k = {k}."
            )
        keep = None
        if any(kept is not None for _, kept in parts):
            # a shard that names no rows keeps all of them
            everyone = torch.ones(len(u_t), dtype=torch.bool, device=u_t.device)
            pairs = zip(parts, draw.shards)
            keep = torch.cat([everyone[r] if own is None else own.bool() for (_, own), r in pairs])
        # a row without its label learns E[u | x_t] over all classes: for it no class is wrong
        if not self.contrast_null and draw.dropped is not None:
            keep = ~draw.dropped if keep is None else keep & ~draw.dropped
        # a batch of one was warned of where it was drawn; on a device a look would wait
        elif keep is not None and len(keep) > 1 and on_host(keep) and not keep.all():
            warn_once(
                "some rows have no negative, such as in a batch of a single class: they are not "
                "repelled (counted in the log)."
            )
        return u_neg, keep

    def counts(self, prepared: tuple[Tensor, Tensor | None]) -> dict[str, Tensor]:
        """How many rows were left out, where any could be."""
        keep = prepared[1]
        # a tensor: to count on the host would wait for the device at every step
        return {} if keep is None else {"left_out": (~keep).sum().to(prepared[0].dtype)}

    def __call__(self, batch: Evaluated) -> Tensor:
        """The squared distance to the wrong velocities, summed over K; at least 0."""
        u_neg, keep = batch.prepared
        return self._away_from(u_neg, keep, batch)

    def _away_from(self, u_neg: Tensor, keep: Tensor | None, batch: Evaluated) -> Tensor:
        if keep is None or not self.rescale:
            return losses.repulsion(batch.v, u_neg, keep, self.rescale)
        # kept rows are counted inside a shard: a micro-batch or a rank holds only some shards
        v, several = batch.v, u_neg.dim() > batch.v.dim()
        values = [
            losses.repulsion(v[r], u_neg[:, r] if several else u_neg[r], keep[r], self.rescale)
            for r in batch.shards
        ]
        return _mean_over_shards(values, batch.shards)


@dataclass(frozen=True)
class ConditionRepulsion(Repulsion):
    """Push the velocity away from the model's own for another condition; this term is subtracted.

    The model's own velocity carries no gradient. It costs one more forward pass. Here `negatives`
    give wrong conditions, not wrong velocities. With n conditions of equal frequency, optima u of
    flow matching and their mean m, training settles at m + (u - m) / (1 - λn / (n - 1)), for
    λ < (n - 1) / n.

    Reference: gstoica27/REPA, contrast_by_condition: |v - u|^2 - λ |v - sg v(x_t, t, c̃)|^2.

    >>> ConditionRepulsion(0.05).negatives.__name__
    'other_condition'
    """

    negatives: Negatives = other_condition

    def prepare(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """(y, keep) of the whole batch: the wrong conditions, drawn shard by shard."""
        # only what is random belongs here; the network runs in the call, inside the graph
        parts = [
            _condition(self.negatives(sample, generator=g), sample.y) for sample, g in draw.each()
        ]
        y, keep = (torch.cat(part) for part in zip(*parts))
        if not self.contrast_null and draw.dropped is not None:
            keep = keep & ~draw.dropped
        return y, keep

    def counts(self, prepared: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """How many rows were left out."""
        return {"left_out": (~prepared[1]).sum().float()}

    def __call__(self, batch: Evaluated) -> Tensor:
        """The squared distance to the model's own velocity for the wrong condition."""
        y, keep = batch.prepared
        # with a gradient the loss would also fall by making v wrong for the other condition
        with torch.no_grad():
            own, _ = batch.model(batch.sample.x_t, batch.sample.t, y, ())
        return self._away_from(own, keep, batch)


@dataclass(frozen=True)
class Dispersive(_Spreading, _Deterministic):
    """Spread the features after `block` (counted from 1), shard by shard, without positive pairs.

    `options` go to `losses.dispersive`: margin, normalize_by_dim, include_diagonal, distance.

    Raises:
        ConfigError: an unknown variant, or a tau or an option that the variant does not have.

    Reference: Wang and He 2025 (arXiv:2506.09027), table 1.

    >>> Dispersive(0.5, block=2).blocks
    (2,)
    """

    weight: float
    block: int
    variant: str = "infonce_l2"
    tau: float = 0.5
    name: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    _read_by: ClassVar = {
        "margin": ("hinge",),
        "normalize_by_dim": ("infonce_l2", "hinge"),
        "include_diagonal": ("infonce_l2", "infonce_cosine", "hinge"),
        "distance": ("hinge",),
    }

    @property
    def blocks(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The one block whose features are spread, counted from 1."""
        return (self.block,)

    @staticmethod
    def usual_weight(variant: str, d: int) -> float:
        """The paper's 0.5 for rows of `d` features, divided by the number of pairs of features
        where the loss itself does not do so.

        >>> Dispersive.usual_weight("covariance", 101) * 101 * 100
        0.5
        """
        return 0.5 / max(1, d * (d - 1)) if variant == "covariance" else 0.5

    def __call__(self, batch: Evaluated) -> Tensor:
        """The loss of the features of `block`, a mean over the shards by their rows."""
        h = batch.features[self.block]
        # inside a shard alone: the paper spreads the batch of one device
        return _mean_over_shards([self._loss_of(h[r]) for r in batch.shards], batch.shards)

    def _loss_of(self, h: Tensor, near: Tensor | None = None) -> Tensor:
        return losses.dispersive(h, self.variant, self.tau, **self.options)


@dataclass(frozen=True)
class Contrastive(_Spreading):
    """Spread features with positive pairs: a second noisy view of the same data must stay near.

    Both views have noise of their own. The flow-matching loss sees the first one only.

    Args:
        views: "independent" draws a new second time, "restricted" one within `max_gap` of the first
            and clipped to [0, 1].
        options: of `losses.contrastive`: margin, w, normalize_by_dim, distance.

    Raises:
        ConfigError: an unknown variant or kind of views, an option that the variant does not have,
            or a `max_gap` with independent views.

    Reference: Wang and He 2025 (arXiv:2506.09027), table 1.

    >>> Contrastive(0.5, block=2, views="restricted").max_gap
    0.005
    """

    weight: float
    block: int
    variant: str = "infonce_l2"
    tau: float = 0.5
    views: str = "independent"
    max_gap: float = 0.005
    name: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    sign = 1.0
    _read_by: ClassVar = {
        "margin": ("hinge",),
        "normalize_by_dim": ("infonce_l2", "hinge"),
        "distance": ("hinge",),
        "w": ("covariance",),
    }

    @property
    def blocks(self) -> tuple[int, ...]:
        """The one block whose features of both views are compared, counted from 1."""
        return (self.block,)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("views", self.views, ("independent", "restricted"))
        gap = check_number("max_gap", self.max_gap, 0.0, 1.0)
        if self.views == "independent" and gap != type(self).max_gap:
            raise ConfigError(
                f"max_gap is {gap:g} and the views are independent, so it bounds nothing; leave it "
                'out, or give views="restricted".'
            )

    def _second_time(self, t: Tensor, draw: Draw, generator: Generator) -> Tensor:
        if self.views == "independent":
            # the law of the first time, so that both views see the times equally often
            second = draw.time(len(t), generator=generator, device=t.device)
            return second.to(t.dtype).clamp(max=draw.path.train_end)
        # uniform on [t - max_gap, t + max_gap]
        u = torch.rand(t.shape, generator=generator, device=t.device, dtype=t.dtype)
        return (t + self.max_gap * (2 * u - 1)).clamp(0, draw.path.train_end)

    def prepare(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """(x_t, t) of the second view."""
        # noise first, then the time: the order of the draws is part of a run
        views = [
            (noise_like(sample.x1, g), self._second_time(sample.t, draw, g))
            for sample, g in draw.each()
        ]
        noise, times = zip(*views)
        t = torch.cat(times)
        # x1 is the sample after its pairing: both views must show the same data
        return draw.path.interpolate(torch.cat(noise), draw.sample.x1, t)[0], t

    def __call__(self, batch: Evaluated) -> Tensor:
        """The loss of the features of both views, a mean over the shards by their rows."""
        x_t, t = batch.prepared
        # the same labels, also where they were dropped: only noise and time differ
        _, second = batch.model(x_t, t, batch.sample.y, blocks=(self.block,))
        h, near = batch.features[self.block], second[self.block]
        values = [self._loss_of(h[r], near[r]) for r in batch.shards]
        return _mean_over_shards(values, batch.shards)

    def _loss_of(self, h: Tensor, near: Tensor | None = None) -> Tensor:
        near = h if near is None else near
        return losses.contrastive(h, near, self.variant, self.tau, **self.options)


class Alignment(_Deterministic, nn.Module):
    """REPA: project the features after `block` and align them with a frozen teacher's.

    The teacher maps the data to (B, T, `teacher_dim`), or the `context` that the objective is given
    (clean images, or features computed before). The projector is Linear, SiLU, Linear, SiLU, Linear
    of `width`. The teacher is neither trained nor saved with the run.

    Raises:
        ConfigError: a size below 1, or a teacher that is no function.

    Reference: Yu et al. 2024 (arXiv:2410.06940), eq. 8.

    >>> Alignment(0.5, 8, hidden_size=16, teacher=lambda x: x, teacher_dim=4).blocks
    (8,)
    """

    def __init__(
        self,
        weight: float,
        block: int,
        hidden_size: int,
        teacher: Callable[[Tensor], Tensor],
        teacher_dim: int,
        *,
        width: int = 2048,
        name: str | None = None,
    ) -> None:
        super().__init__()
        check_callable(teacher=teacher)
        hidden_size, teacher_dim, width = (
            check_count(name, size)
            for name, size in (
                ("hidden_size", hidden_size),
                ("teacher_dim", teacher_dim),
                ("width", width),
            )
        )
        self.weight, self.block, self.name = plain(weight), plain(block), name
        self.blocks = (self.block,)
        self._teacher = (teacher,)  # in a tuple, so that it is not a submodule
        self.projector = nn.Sequential(
            nn.Linear(hidden_size, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, teacher_dim),
        )
        for layer in self.projector:
            if isinstance(layer, nn.Linear):
                # REPA's projectors are part of its SiT, whose initialisation reaches every Linear
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, batch: Evaluated) -> Tensor:
        """Minus the mean cosine of the projected features and the teacher's, in [-1, 1].

        Raises:
            ConfigError: a teacher that gives no tensor (B, T, dim), or another number of tokens
                than the block; a block of another width than `hidden_size`.
        """
        data = batch.sample.x1 if batch.context is None else batch.context
        # frozen also inside: no dropout, and no batch statistics of our images
        with torch.no_grad(), evaluating(self._teacher[0]):
            target = self._teacher[0](data)
        check_tensor(**{"what the teacher gives": target})
        h = batch.features[self.block]
        if h.dim() == 2:  # a network without tokens counts as one token
            h, target = h[:, None], target.reshape(len(target), 1, -1)
        # the cosine is taken token by token, so both grids must show the same places
        if h.shape[:2] != target.shape[:2]:
            raise ConfigError(
                f"the teacher gives {tuple(target.shape[:2])} (batch, tokens) and block "
                f"{self.block} gives {tuple(h.shape[:2])}; they must be equal. Choose the "
                "teacher's image size so that it has as many tokens as the model."
            )
        first = next(self.projector.children(), None)
        if isinstance(first, nn.Linear) and h.shape[-1] != first.in_features:
            raise ConfigError(
                f"block {self.block} gives features of width {h.shape[-1]}, and hidden_size is "
                f"{first.in_features}; they must be equal. Give hidden_size={h.shape[-1]}."
            )
        # the model side alone is projected: a learnt map of the target could please any model
        return losses.align(self.projector(h), target)


def _rows(sample: FlowSample, rows: slice) -> FlowSample:
    *tensors, y = sample
    x0, x1, t, x_t, u_t = (part[rows] for part in tensors)
    return FlowSample(x0, x1, t, x_t, u_t, None if y is None else y[rows])


def _with_keep(part: Any, u: Tensor) -> tuple[Tensor, Tensor | None]:
    """(u_neg, keep) of what negatives gave for velocities `u`; ConfigError for anything else."""
    u_neg, keep = part if isinstance(part, tuple) and len(part) == 2 else (part, None)
    # the number of dims tells (K, B, *dims) from (B, *dims)
    if (
        not isinstance(u_neg, Tensor)
        or u_neg.dim() - u.dim() not in (0, 1)
        or u_neg.shape[u_neg.dim() - u.dim() :] != u.shape
    ):
        tensor = isinstance(u_neg, Tensor)
        shape = f"a tensor {tuple(u_neg.shape)}" if tensor else type(u_neg).__name__
        raise ConfigError(
            f"negatives gave {shape}; it must be u_neg {tuple(u.shape)}, (K, *{tuple(u.shape)}), "
            "or (u_neg, keep)."
        )
    if keep is not None:
        check_keep("the keep that negatives gave", keep, len(u))
    return u_neg, keep


def _condition(part: Any, y: Any) -> tuple[Tensor, Tensor]:
    """(y, keep) of what negatives gave for conditions `y`; ConfigError for anything else."""
    pair: tuple[Any, Any] = part if isinstance(part, tuple) and len(part) == 2 else (part, None)
    other, keep = pair
    # features of captions are numbers, labels and words are not
    floats = isinstance(y, Tensor) and y.is_floating_point()
    wrong = not isinstance(other, Tensor) or other.is_floating_point() != floats
    if wrong or keep is None or (y is not None and other.shape != y.shape):
        given = type(part).__name__ if keep is None else seen(other)
        wanted = "(B,) or (B, L)" if y is None else tuple(y.shape)
        raise ConfigError(
            f"negatives gave {given}; ConditionRepulsion needs (y, keep): other conditions y "
            f"{wanted}, and one flag per row. Use negatives.other_condition."
        )
    check_keep("the keep that negatives gave", keep, len(other))
    return other, keep.bool()


def noise_like(x: Tensor, generator: Generator | None) -> Tensor:
    """Standard normal noise of the shape, dtype and device of `x`.

    >>> noise_like(torch.zeros(2, 3), None).shape
    torch.Size([2, 3])
    """
    # in the dtype of x: one seed gives other noise in float64 than in float32
    return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)


def _mean_over_shards(values: Sequence[Tensor], shards: Sequence[slice]) -> Tensor:
    """The mean of one value per shard, each counted by its rows."""
    if len(values) == 1:
        return values[0]
    # the last shard may have fewer rows
    sizes = [rows.stop - rows.start for rows in shards]
    return torch.stack([value * (n / sum(sizes)) for value, n in zip(values, sizes)]).sum()
