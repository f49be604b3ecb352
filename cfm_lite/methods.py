"""Every method in one table: its term, its control, its way back, its names and its colour.

A method is flow matching plus a term. If the optimum of a method is a known map of FM's velocity,
the table also holds that map, the *control*, and its inverse, which *debiases* a trained network.
The control needs no training. So what the control reaches is due to re-targeting alone, and only
the rest is due to repulsion.

Recipes, the arms of the lab, `--debias`, figures, explorers and the README's table read this file,
so a new method is one entry here. CONTRIBUTING.md shows one.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from cfm_lite import draws, guidance, perturbations
from cfm_lite._internal.networks import seeded
from cfm_lite.errors import ConfigError
from cfm_lite.guidance import Velocity
from cfm_lite.losses import WITH_TAU
from cfm_lite.negatives import in_batch, in_batch_mean, perturbed
from cfm_lite.paths import PATHS
from cfm_lite.perturbations import expected_map
from cfm_lite.terms import Alignment, ConditionRepulsion, Contrastive, Dispersive, Repulsion

__all__ = [
    "FIRST",
    "METHODS",
    "PERTURBATIONS",
    "SCALED",
    "TIME_SCALED",
    "Arm",
    "Data",
    "Method",
    "Needed",
    "arms",
    "debiasing",
]

Settings = Any  # what has the fields of a recipe: method, also, weight, k, perturb, path, ...


class Needed(NamedTuple):
    """What terms need beside their settings; `Method.needs` names what a method must be given.

    >>> Needed().width
    2048
    """

    codec: Any = None  # from x1 to the images that it stands for; None for pixels and points
    teacher: Any = None  # a frozen encoder, images -> (B, T, dim), with the attribute `dim`
    hidden_size: int = 0  # of the network that is aligned
    width: int = 2048  # of the projector between the network and its teacher


class Data(Protocol):
    """What a map of velocities may know of the data: the dims of one sample, and E[x1].

    >>> from types import SimpleNamespace
    >>> data = SimpleNamespace(shape=(2,), mean=None)  # an object with both is one
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """The dims of one sample, without the batch."""
        ...

    @property
    def mean(self) -> Tensor | None:
        """E[x1] of `shape`, or None where it is not known."""
        ...


Terms = Callable[[Settings, Needed], tuple[Any, ...]]
Change = Callable[[Velocity, Settings, Data], Velocity]


@dataclass(frozen=True)
class Arm:
    """A trained method as it is sampled and drawn, with an optional `change` of its velocity.

    An arm without a colour is drawn in a muted style that its name decides.

    >>> arms()["fm_scaled"].trained
    'fm'
    """

    method: str
    label: str
    trained: str = "fm"
    change: Change | None = None
    colour: str = ""
    marker: str = ""
    line: str = "-"
    # of the recipe that it is trained by
    fields: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def changes(self) -> bool:
        """Whether something is done to the trained velocity."""
        return self.change is not None

    def __call__(self, velocity: Velocity, settings: Settings, data: Data) -> Velocity:
        """The velocity that is sampled, from that of a network that was trained by `trained`."""
        return self.change(velocity, settings, data) if self.change else velocity


@dataclass(frozen=True)
class Method:
    """What is trained: flow matching plus `terms`, and what is known of its optimum.

    `control` maps FM's velocity to that optimum, and `debias` maps it back; None where no such map
    is known. `needs` names what must be there: a network that gives "features", a "teacher", a
    "codec". `reads` are the fields of a recipe that its terms read.

    >>> METHODS["delta_fm"].control.method
    'fm_retargeted'
    """

    name: str
    label: str
    colour: str
    source: str
    terms: Terms
    control: Arm | None = None
    debias: Arm | None = None
    needs: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    loss: str = ""
    python: str = ""  # the same with `cfm_lite.objective`
    marker: str = ""
    line: str = "-"


PERTURBATIONS: dict[str, Callable[..., Tensor]] = {
    change.__name__: change
    for change in (
        perturbations.channel_shuffle,
        perturbations.crop_resize,
        perturbations.cutmix,
        perturbations.gaussian_blur,
        perturbations.color_jitter,
        perturbations.additive_noise,
    )
}
TIMES: dict[str, Callable[..., Tensor]] = {
    "uniform": draws.uniform_time,
    "logit_normal": draws.logit_normal_time,
    "lognormal": draws.lognormal_time,
}
LARGEST = 4096  # numbers in a sample, up to which E[P] is computed: the matrix has their square


def time_of(s: Settings) -> Callable[..., Tensor]:
    """The distribution of the times that the settings name."""
    draw = TIMES[s.time]
    return partial(draw, mean=s.time_mean) if s.time_mean else draw


# Terms: from the settings to what is added to flow matching


def _none(s: Settings, needed: Needed) -> tuple[Any, ...]:
    return ()


def _from_batch(s: Settings, needed: Needed) -> tuple[Any, ...]:
    # a row of any class, as in eq. 6: then E[u_neg] depends on neither x_t nor y
    return (Repulsion(s.weight, in_batch),)


def _from_condition(s: Settings, needed: Needed) -> tuple[Any, ...]:
    return (ConditionRepulsion(s.weight),)


def _from_perturbed(space: str, s: Settings, needed: Needed) -> tuple[Any, ...]:
    # latents of a run may have a codec, which only the image space may use
    change, codec = PERTURBATIONS[s.perturb], needed.codec if space == "image" else None
    return (Repulsion(s.weight, perturbed(change, space=space, k=s.k, codec=codec)),)


def _spread(s: Settings, needed: Needed) -> tuple[Any, ...]:
    return (Dispersive(s.spread, s.block, s.variant, _tau(s)),)


def _spread_pairs(s: Settings, needed: Needed) -> tuple[Any, ...]:
    return (Contrastive(s.spread, s.block, s.variant, _tau(s), s.views),)


def _tau(s: Settings) -> float:
    """The temperature; a preset may carry one that its variant does not have."""
    return s.tau if s.variant in WITH_TAU else Dispersive.tau


def _aligned(s: Settings, needed: Needed) -> tuple[Any, ...]:
    with seeded(s.seed + 1):  # the projector's own: the network was drawn from s.seed
        hidden, teacher, width = needed.hidden_size, needed.teacher, needed.width
        return (Alignment(s.align, s.align_block, hidden, teacher, teacher.dim, width=width),)


# Controls and ways back: from a velocity to another one, without training


def _scaled(v: Velocity, s: Settings, data: Data) -> Velocity:
    # `retarget` with E[u_neg] = 0: what repulsion does to the length of v and nothing else
    return guidance.rescale(v, 1 / (1 - s.weight * s.k))


def _away_from_batch(v: Velocity, s: Settings, data: Data) -> Velocity:
    return guidance.retarget(v, s.weight, _mean_negative(s, data))


def _back_to_batch(v: Velocity, s: Settings, data: Data) -> Velocity:
    return guidance.debias(v, s.weight, _mean_negative(s, data))


def _mean_negative(s: Settings, data: Data) -> Tensor:
    if data.mean is None:
        raise ConfigError(
            f"undoing {s.method!r} needs the mean of the data, which is not known here. It is kept "
            "with a run of this library; an official file has none."
        )
    # in closed form from E[x1]: a control that was sampled would add noise of its own
    return in_batch_mean(data.mean, PATHS[s.path], time_of(s))


def _from_fm(
    change: Callable[..., Velocity], space: str, v: Velocity, s: Settings, data: Data
) -> Velocity:
    """`guidance.retarget_linear` or its inverse for the perturbation that the settings name."""
    return change(v, s.weight, _expected(s, data), k=s.k, space=space, path=PATHS[s.path])


def _expected(s: Settings, data: Data) -> Tensor:
    """E[P] of the perturbation, for samples or, where it mixes channels alone, for channels."""
    # a shuffle treats all pixels alike, so a (C, C) matrix serves images of any size
    shape = data.shape[:1] if s.perturb == "channel_shuffle" else data.shape
    if math.prod(shape) > LARGEST:
        raise ConfigError(
            f"a sample has {math.prod(shape)} numbers; the mean of {s.perturb} is a matrix of that "
            f"size, which is computed up to {LARGEST}. Only channel_shuffle needs no such matrix."
        )
    return expected_map(PERTURBATIONS[s.perturb], shape)


def _unshuffled(v: Velocity, s: Settings, data: Data) -> Velocity:
    # one map in two ways that round differently: rows on record were made with the matrix
    if s.perturb == "channel_shuffle" and s.dataset == "imagenet":
        return guidance.debias_shuffle(v, s.weight, s.k)
    return _from_fm(guidance.debias_linear, "velocity", v, s, data)


SCALED = Arm("fm_scaled", "FM, scaled", "fm", _scaled, "#6CCBB0", "v", "--")  # of every repulsion
# of networks that are too slow at the noise; a suite sets how much, tuned on seeds of its own
TIME_SCALED = Arm(
    "fm_time_scaled", "FM, time-scaled", "fm", None, "#78A55A", "<", "--", fields={"boost": 0.05}
)
# what `reads` leaves out is refused with --set: a field that nothing reads would change nothing
_OF_REPULSION, _OF_FEATURES = ("weight", "k", "perturb"), ("spread", "variant", "tau", "block")

# A hue per family (green FM, purple ΔFM, orange VeCoR). Inside a family shade, marker and line
# differ, so that grey print and colour-blind readers tell them apart. Blue and vermilion stay free:
# they mean data and repulsion.
METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "fm",
            "FM",
            "#009E73",
            "Lipman 2023 (arXiv:2210.02747)",
            _none,
            loss="E‖v − u‖²",
            python="fm(model)",
            marker="o",
        ),
        Method(
            "delta_fm",
            "ΔFM",
            "#7B3FA0",
            "Stoica 2025 (2506.05350)",
            _from_batch,
            control=Arm(
                "fm_retargeted", "FM, re-targeted", "fm", _away_from_batch, "#00563F", "^", ":"
            ),
            debias=Arm(
                "delta_fm_debiased",
                "ΔFM, debiased",
                "delta_fm",
                _back_to_batch,
                "#A06CC8",
                "D",
                "--",
            ),
            reads=("weight",),
            loss="FM − λ E‖v − ũ‖², ũ of another row",
            python="delta_fm(model, weight=0.05)",
            marker="s",
        ),
        Method(
            "vecor",
            "VeCoR",
            "#E69F00",
            "Hong 2025 (2511.18942)",
            partial(_from_perturbed, "velocity"),
            control=Arm(
                "fm_retargeted_vecor",
                "FM, re-targeted as VeCoR",
                "fm",
                # a partial, not a lambda: an arm can then be pickled for another process
                partial(_from_fm, guidance.retarget_linear, "velocity"),
            ),
            debias=Arm(
                "vecor_debiased", "VeCoR, debiased", "vecor", _unshuffled, "#F2CC73", "p", "--"
            ),
            reads=_OF_REPULSION,
            loss="FM − λ Σₖ E‖v − ûₖ‖², ûₖ perturbed",
            python="vecor(model, weight=0.05, k=1)",
            marker="P",
        ),
        Method(
            "vecor_latent",
            "VeCoR (latent)",
            "#8C6100",
            "ibid.",
            partial(_from_perturbed, "latent"),
            control=Arm(
                "fm_retargeted_latent",
                "FM, re-targeted as VeCoR (latent)",
                "fm",
                partial(_from_fm, guidance.retarget_linear, "latent"),
            ),
            debias=Arm(
                "vecor_latent_debiased",
                "VeCoR (latent), debiased",
                "vecor_latent",
                partial(_from_fm, guidance.debias_linear, "latent"),
            ),
            reads=_OF_REPULSION,
            loss="the same, ûₖ towards perturbed data",
            python='vecor(model, space="latent")',
            marker="X",
            line="-.",
        ),
        Method(
            "vecor_image",
            "VeCoR (image)",
            "",
            "ibid.",
            partial(_from_perturbed, "image"),
            # no control: encode(A(decode(x))) is not linear, so E[u_neg | x_t] is no map of v
            needs=("codec",),
            reads=_OF_REPULSION,
            loss="the same, latents perturbed as images",
            python='vecor(model, space="image", codec=codec)',
        ),
        Method(
            "dispersive",
            "Dispersive",
            "#56B4E9",
            "Wang & He 2025 (2506.09027)",
            _spread,
            # no control: it acts on features, and does not say where its optimal velocity lies
            needs=("features",),
            reads=_OF_FEATURES,
            loss="FM + w log E exp(−‖hᵢ − hⱼ‖²/(dτ))",
            python="dispersive(model, weight=0.5)",
            marker="h",
        ),
        Method(
            "contrastive",
            "Contrastive",
            "",
            "ibid., table 1",
            _spread_pairs,
            needs=("features",),
            reads=(*_OF_FEATURES, "views"),
            loss="the same with positive pairs",
            python=".plus(Contrastive(0.5, block=2))",
        ),
        Method(
            "repa",
            "REPA",
            "#CC79A7",
            "Yu 2024 (2410.06940)",
            _aligned,
            needs=("features", "teacher"),
            reads=("align", "align_block"),
            loss="FM − w cos(features, a frozen encoder's)",
            python="repa(model, teacher)",
            marker="*",
        ),
        Method(
            "contrast_by_condition",
            "ΔFM (own velocity)",
            "",
            "gstoica27/REPA",
            _from_condition,
            # no control: the wrong velocity is the network's own, and moves with it
            reads=("weight",),
            loss="FM − λ E‖v − sg v(c̃)‖², another c̃",
            python=".plus(ConditionRepulsion(0.05))",
        ),
    )
}
FIRST = ("fm", "delta_fm", "vecor_latent", "dispersive")  # what a first look shows: one of a kind
_VARIED = (  # one training with another field, or two methods at once
    Arm(
        "contrastive_independent",
        "Contrastive, independent noise",
        "contrastive",
        fields={"views": "independent"},
    ),
    Arm(
        "contrastive_restricted",
        "Contrastive, near noise",
        "contrastive",
        fields={"views": "restricted"},
    ),
    Arm(
        "pair",
        "VeCoR and REPA",
        "vecor_latent",
        None,
        "#A8327E",
        "d",
        "-.",
        fields={"also": "repa"},
    ),
    Arm("pair_delta_fm", "ΔFM and REPA", "delta_fm", fields={"also": "repa"}),
    Arm(
        "pair_dispersive",
        "VeCoR and dispersive",
        "vecor_latent",
        fields={"also": "dispersive"},
    ),
)


def arms() -> dict[str, Arm]:
    """Every arm by name: FM, what needs no training, each method with its way back, and pairs.

    >>> list(arms())[:3]
    ['fm', 'fm_scaled', 'fm_time_scaled']
    """
    # FM comes first, because figures and tables compare all others with it
    fm, *others = (
        (Arm(m.name, m.label, m.name, None, m.colour, m.marker, m.line), m.control, m.debias)
        for m in METHODS.values()
    )
    controls = (control for _, control, _ in others)
    trained = (arm for plain, _, back in others for arm in (plain, back))
    return {
        arm.method: arm
        for arm in (fm[0], SCALED, TIME_SCALED, *controls, *trained, *_VARIED)
        if arm is not None
    }


def debiasing(settings: Settings) -> Arm:
    """The arm that undoes what the method of `settings` does to the velocity.

    Raises:
        ConfigError: no inverse is known, as for a method without one, or for two at once.

    >>> from types import SimpleNamespace
    >>> debiasing(SimpleNamespace(method="delta_fm", also=None)).method
    'delta_fm_debiased'
    """
    undo = {name: method.debias for name, method in METHODS.items() if method.debias}
    # each inverse is for one repulsion alone: two cannot be undone one after the other
    if settings.method not in undo or settings.also in undo:
        also = f" with {settings.also!r}" if settings.also else ""
        raise ConfigError(
            f"--debias knows no inverse for the method {settings.method!r}{also}. It works only "
            f"for {', '.join(undo)}."
        )
    return undo[settings.method]
