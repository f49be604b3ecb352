"""The report's figures and its tables of differences, each a function of the rows."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from cfm_lite import viz
from cfm_lite.lab.arms import CONTROLS, TRAINED
from cfm_lite.lab.figures import quality
from cfm_lite.lab.statistics import Difference
from cfm_lite.lab.suites import SUITES
from cfm_lite.methods import METHODS
from cfm_lite.viz import Panel, Picture
from tools.report.results import Place, Results, number

__all__ = ["FIGURES", "TITLES", "cell_of", "differences_table", "title"]

TITLES = {
    "toy": "Plane",
    "digits": "Digits",
    "mnist": "MNIST",
    "mnist_short": "MNIST, short",
    "mnist_guidance": "MNIST, guided",
    "mnist_sit": "MNIST, SiT",
    "words": "Words",
    "cifar10": "CIFAR-10, 16 × 16",
    "cifar10_full": "CIFAR-10",
}
LABELS = {  # what the settings of a group are
    "core": "network evaluations (NFE)",
    "perturbation": "perturbation",
    "counterparts": "form of the loss",
    "weight": "λ",
    "k": "K, negatives per row",
    "spread": "weight of the dispersive loss",
    "tau": "τ of the dispersive loss",
    "block": "block that is spread",
    "size": "width of the network",
    "length": "training steps",
    "guidance": "guidance scale",
}
KINDS = {
    "infonce_l2": "ℓ2",
    "infonce_cosine": "cosine",
    "channel_shuffle": "channel shuffle",
    "crop_resize": "crop and resize",
    "cutmix": "CutMix",
    "gaussian_blur": "blur",
    "color_jitter": "jitter",
    "additive_noise": "noise",
}
SPACES = {"vecor": "velocity", "vecor_latent": "latent", "vecor_image": "image"}
PAIRS = {
    "dispersive": "no pairs",
    "contrastive_independent": "independent noise",
    "contrastive_restricted": "near noise",
}
Rows = Iterator[tuple[str, Place, Place | None]]  # (label, place, base)
Build = Callable[[Results, str], Rows]


def title(method: str) -> str:
    """A method's name in a table or a figure."""
    return viz.method_style(method).label


def _settings(results: Results, suite: str, group: str) -> Sequence[tuple[str, Place]]:
    """(name, place of plain FM) of each way in which a group was trained or sampled.

    The core's value of the same recipe field is added.
    """
    variants = results.known(suite, group, "variant")
    if variants in ([], [""]):
        ways = [(row["nfe"], row["sampler"], row["guidance"]) for row in results.rows(suite, group)]
        places = [Place("fm", group, "", *way) for way in dict.fromkeys(ways)]
        if group == "guidance" or len({place.guidance for place in places}) > 1:
            return [(f"scale {place.guidance:g}", place) for place in places]
        return [(f"{place.sampler} {place.nfe}", place) for place in places]
    top = results.nfes(suite, group)[-1]
    found = [(_named(variant), Place("fm", group, variant, top)) for variant in variants]
    field, given, _ = variants[0].partition("=")
    if given and group != "image":
        value = getattr(SUITES[suite].base("core", {}), field)
        name = f"{value:g}" if isinstance(value, float) else str(value)
        found.append((_named(name), results.core(suite)))
    return found if field == "perturb" or not given else sorted(found, key=lambda p: float(p[0]))


def _shown(results: Results) -> Sequence[str]:
    """The suites with a panel. Where a U-Net was trained on MNIST, the SiT has tables alone.
    Suites that are sampled with guidance have figures of their own.
    """
    good = {"mnist", "mnist_short"} & results.suites.keys()
    hidden = {"mnist_sit"} if good else set()
    return [s for s in results.suites if s not in hidden and results.core(s).guidance == 1]


def _named(variant: str) -> str:
    value = variant.rpartition("=")[2]
    return KINDS.get(value, value)


def differences_table(results: Results, suite: str, group: str) -> Iterator[str]:
    """A group as Markdown: a row per setting, a column per method. Clear differences are bold."""
    methods = [m for m in results.methods(suite, group) if m != "fm"]
    yield f"\n| {' | '.join([LABELS.get(group, group), 'FM', *map(title, methods)])} |"
    yield f"|---|---|{'---|' * len(methods)}"
    for name, place in _settings(results, suite, group):
        fm = number(results.mean(suite, results.base(suite, place), quality(suite)))
        found = (results.difference(suite, replace(place, method=m)) for m in methods)
        yield f"| {' | '.join([name, fm, *map(cell_of, found)])} |"


def cell_of(d: Difference | None) -> str:
    """A difference in a cell of a table: bold if it is clear."""
    mean = number(d.mean, True) if d else ""
    return f"**{mean}**" if d and d.clear else mean


def _panel(suite: str, xlabel: str = "", metric: str = "") -> Panel:
    shown = viz.METRICS[metric or quality(suite)]
    name, good = shown.name.partition(",")[0], shown.better.partition(" ")[0]
    return Panel(TITLES[suite], f"{name}\nminus FM's", good, xlabel)


def _drawn_rows(
    build: Build, marked: str = "", metric: str = "", best_first: bool = False
) -> Callable[[Results], Picture | None]:
    """A figure with a row for each difference of `build`. Labels with the word `marked` get a
    band.
    """

    def draw(results: Results) -> Picture | None:
        blocks: dict[Panel, list[tuple[str, Difference]]] = {}
        for suite in _shown(results):
            for label, place, base in build(results, suite):
                d = results.difference(suite, place, metric or None, base)
                if d is not None:
                    blocks.setdefault(_panel(suite, metric=metric), []).append((label, d))
        for rows in blocks.values() if best_first else ():
            rows.sort(key=lambda row: row[1].mean)
        bands = {label for rows in blocks.values() for label, _ in rows if marked in label}
        return viz.difference_rows(blocks, bands if marked else ()) if blocks else None

    return draw


def _controls(results: Results, suite: str) -> Rows:
    """Each repelling method beside its control, the difference of the two, and its debiased
    form.
    """
    for method, control in CONTROLS.items():
        mine, held = (results.core(suite, name) for name in (method, control))
        yield title(control), held, None
        yield title(method), mine, None
        yield f"{title(method)} minus its control", mine, held
        back = METHODS[method].debias
        if back is not None:
            yield title(back.method), replace(mine, method=back.method), None


def _perturbations(results: Results, suite: str) -> Rows:
    """VeCoR with every perturbation in every space."""
    for group in ("perturbation", "image"):
        for name, place in _settings(results, suite, group):
            for method, space in SPACES.items():
                yield f"{name} in {space} space", replace(place, method=method), None


def _pairs(results: Results, suite: str) -> Rows:
    """The four forms of the dispersive loss: without positive pairs, and with two kinds of them."""
    for name, place in _settings(results, suite, "counterparts"):
        for method, kind in PAIRS.items():
            yield f"{name}, {kind}", replace(place, method=method), None


def _recall(results: Results, suite: str) -> Rows:
    for method in ("fm_scaled", "fm_time_scaled", "fm_retargeted", *TRAINED):
        yield title(method), results.core(suite, method), None


def parts(results: Results) -> Picture | None:
    """Pictures of words: what each method changes in four parts of the reader's score."""
    blocks: dict[Panel, list[tuple[str, Difference]]] = {}
    for prompts, part in _PARTS if "words" in results.suites else ():
        metric = f"{part}_{prompts}"
        panel = _panel("words", metric=metric)._replace(title=_PROMPTS[prompts])
        for method in _ON_WORDS:
            d = results.difference("words", results.core("words", method), metric)
            blocks.setdefault(panel, []).extend([(title(method), d)] if d else [])
    return viz.difference_rows(blocks) if blocks else None


def norms(results: Results) -> Picture | None:
    """For every dispersive arm: the length of its features over FM's, against the difference to
    FM.
    """
    blocks: dict[Panel, list[tuple[str, float, Difference]]] = {}
    for suite in _shown(results):
        core = results.core(suite)
        weights = _settings(results, suite, "spread") or [("0.5", core)]
        places = {f"ℓ2, weight {name}": place for name, place in weights}
        forms = _settings(results, suite, "counterparts")
        places |= {name: place for name, place in forms if name != "ℓ2"}
        length = results.mean(suite, core, "feature_norm")
        for label, place in places.items():
            mine = replace(place, method="dispersive")
            d, norm = results.difference(suite, mine), results.mean(suite, mine, "feature_norm")
            if d is not None and norm > 0 and length > 0:
                blocks.setdefault(_panel(suite), []).append((label, norm / length, d))
    blocks = {panel: points for panel, points in blocks.items() if len(points) > 1}
    xlabel = "length of the features, relative to FM's"
    return viz.difference_scatter(blocks, xlabel=xlabel) if blocks else None


def _drawn_curves(
    groups: Sequence[str], methods: Sequence[str], **look: Any
) -> Callable[[Results], Picture | None]:
    """A figure with the differences against the settings of each group.

    Each suite that has them has a panel.
    """

    def draw(results: Results) -> Picture | None:
        blocks: dict[Panel, dict[str, dict[float, Difference]]] = {}
        panels = [
            (suite, group, LABELS[group]) for group, suite in product(groups, _shown(results))
        ]
        if "guidance" in groups and "mnist_guidance" in results.suites:
            panels.append(("mnist_guidance", "core", LABELS["guidance"]))
        for suite, group, label in panels:
            curves: dict[str, dict[float, Difference]] = {}
            mine = [m for m in methods if m in results.methods(suite, group)]
            for (name, place), method in product(_settings(results, suite, group), mine):
                d = results.difference(suite, replace(place, method=method))
                if d is not None:
                    curves.setdefault(method, {})[float(name.rpartition(" ")[2])] = d
            if curves:
                blocks[_panel(suite, label)] = curves
        return viz.difference_curves(blocks, xlabel="", **look) if blocks else None

    return draw


# Four methods tell each story. The tables of the suites hold the others, and all other settings.
_PUBLISHED = ("delta_fm", "vecor", "dispersive", "repa")
_REPELLED = ("fm_retargeted", "delta_fm", "vecor", "vecor_latent")
_GUIDED = ("fm_retargeted", "delta_fm", "delta_fm_debiased")
_PROMPTS = {"seen": "Seen prompts", "held_out": "Held-out prompts"}
_PARTS = (("seen", "right"), ("held_out", "right"), ("held_out", "colours"), ("held_out", "kinds"))
_ON_WORDS = (
    *("fm_scaled", "fm_time_scaled", "fm_retargeted", "delta_fm", "vecor", "vecor_latent"),
    *("contrast_by_condition", "dispersive"),
)
FIGURES: Mapping[str, Callable[[Results], Picture | None]] = {
    "question_1.png": _drawn_curves(("core",), _PUBLISHED),
    "question_2.png": _drawn_rows(_controls, "minus its control"),
    "question_4.png": _drawn_rows(_perturbations, best_first=True),
    "question_5.png": _drawn_rows(_pairs, "no pairs"),
    "question_6.png": norms,
    "question_7.png": _drawn_rows(_recall, metric="recall"),
    "question_8.png": _drawn_curves(("guidance",), _GUIDED, columns=2, log=False),
    "question_9.png": _drawn_curves(("weight", "k"), _REPELLED, columns=2, squeeze=True),
    "question_10.png": parts,
}
