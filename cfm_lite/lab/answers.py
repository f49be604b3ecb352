"""An answer to one of the questions of the lab: sentences and a figure, computed from the rows.

Sentences choose their verdicts by the statistics alone, and say "not measured yet" where rows are
missing. The questions themselves stand in `benefits`, `controls`, `mechanisms` and `tuning`, what
the papers report in `claims`.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from cfm_lite.lab.results import Place, Results, number, quality, said_of
from cfm_lite.lab.statistics import Difference
from cfm_lite.viz import Panel, Picture, difference_rows, method_style

__all__ = [
    "NAMES",
    "TITLES",
    "Answer",
    "Told",
    "absent",
    "by_method",
    "by_suite",
    "capital",
    "clause",
    "items",
    "least",
    "listed",
    "quality_panel",
    "rows_figure",
    "sentence",
    "setting",
    "spoken",
    "title",
    "where",
]

TITLES = {
    "toy": "Plane, exact law known",
    "digits": "Digits, 8 × 8",
    "mnist": "MNIST, 28 × 28",
    "cifar10": "CIFAR-10, 32 × 32",
}
PLACES = {
    "toy": "in the plane",
    "digits": "on the digits",
    "mnist": "on MNIST",
    "cifar10": "on CIFAR-10",
}
NAMES = {
    "frechet": "Fréchet distance",
    "sliced_wasserstein": "sliced Wasserstein distance",
    "recall": "recall",
}
SPOKEN = {
    "fm_scaled": "scaled FM",
    "fm_retargeted": "re-targeted FM",
    "fm_retargeted_vecor": "FM re-targeted as VeCoR",
    "fm_retargeted_latent": "FM re-targeted as VeCoR (latent)",
    "delta_fm_debiased": "debiased ΔFM",
    "vecor_debiased": "debiased VeCoR",
    "vecor_latent_debiased": "debiased VeCoR (latent)",
    "dispersive": "dispersive",
    "pair": "VeCoR (latent) with REPA",
    "pair_delta_fm": "ΔFM with REPA",
    "pair_dispersive": "VeCoR (latent) with dispersive",
    "contrastive_independent": "contrastive with independent noise",
    "contrastive_restricted": "contrastive with near noise",
}
FIELDS = {
    "hidden_size": "width ",
    "weight": "λ = ",
    "k": "K = ",
    "tau": "τ = ",
    "block": "block ",
    "spread": "weight ",
    "perturb": "",
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

Told = Sequence[tuple[str, Difference | None]]  # (who or where, difference)


@dataclass(frozen=True)
class Answer:
    """A question, its answer in one sentence, the numbers behind it, what the papers say, and a
    figure where there are rows for one.
    """

    question: str
    short: str
    sentences: Sequence[str]
    papers: Sequence[str] = ()
    figure: Picture | None = None


def title(method: str) -> str:
    """A method's name in a table or a figure."""
    return method_style(method).label


def spoken(method: str) -> str:
    """A method's name inside a sentence."""
    return SPOKEN.get(method, title(method))


def setting(variant: str) -> str:
    """A variant's name inside a sentence or a figure."""
    name, _, value = variant.rpartition("=")
    value = KINDS.get(value, value)
    return (
        f"{int(value):,} steps"
        if name == "steps"
        else FIELDS.get(name, f"{name} " if name else "") + value
    )


def where(suite: str) -> str:
    """Where a suite was measured, inside a sentence."""
    return PLACES.get(suite, f"on {suite}")


def absent(suite: str, group: str, what: str) -> str:
    """What is said of a group without rows."""
    return f"{what}: not measured yet (`cfm-lite compare {suite} --group {group}`)."


def least(results: Results, suite: str) -> Iterator[tuple[str, Place]]:
    """(name, place of plain FM) where the papers see the largest gains: the smallest network, and
    the shortest training.
    """
    for group in ("size", "length"):
        for variant in results.variants(suite, group)[:1]:
            yield setting(variant), Place("fm", group, variant, results.nfes(suite, group)[-1])


def listed(names: Sequence[str]) -> str:
    """Names as a list inside a sentence."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def items(head: str, parts: Iterable[str]) -> str:
    """A line and, indented below it, one for each part."""
    return "\n".join([f"{head}:", *(f"  - {capital(part)}" for part in parts)])


def capital(text: str) -> str:
    """`text` with a capital letter; λ and τ keep theirs."""
    return text[:1].upper() + text[1:] if text[:1].isascii() else text


def clause(told: Told, gain: str = "gain", lose: str = "lose", numbers: bool = False) -> str:
    """Who gains, who loses (with the mean difference if `numbers`), and who does neither, by what
    the statistics allow to be said.
    """
    found = [(name, d) for name, d in told if d is not None]
    if not found:
        return "nothing was measured yet"
    sorted_by = {
        word: [_named(name, d, numbers) for name, d in found if said_of(d) == word]
        for word in ("gains", "loses")
    }
    parts = [
        f"{listed(names)} {_verb(verb, names)}"
        for verb, names in zip((gain, lose), sorted_by.values())
        if names
    ]
    idle = [name for name, d in found if said_of(d) == "no clear difference"]
    return ", ".join([*parts, *([f"no clear difference for {listed(idle)}"] if idle else [])])


def _named(name: str, d: Difference, numbers: bool) -> str:
    return f"{name} ({number(d.mean, True)})" if numbers else name


def _verb(words: str, names: Collection[str]) -> str:
    """The first of `words` as one name or several names need it."""
    verb, *more = words.split(" ")
    return " ".join([verb + "s" * (len(names) == 1), *more])


def by_suite(
    told: Mapping[str, Told], gain: str = "gain", lose: str = "lose", lead: str = ""
) -> str:
    """One sentence, after `lead`, with a clause for each suite; where nothing at all is clear, it
    is called what it is.
    """
    found = {
        suite: [(name, d) for name, d in mine if d is not None] for suite, mine in told.items()
    }
    text = "; ".join(
        f"{where(suite)} {clause(mine, gain, lose)}" for suite, mine in found.items() if mine
    )
    idle = not any(d.clear for mine in found.values() for _, d in mine)
    return sentence(f"{lead}{text}{' (a null result)' if idle else ''}" if text else "")


def by_method(
    told: Mapping[str, Iterable[tuple[str, str, Difference | None]]], lead: str = ""
) -> str:
    """One sentence, after `lead`, with a clause for each method: where it gains and where it loses.

    `told` has (method, setting, difference) by suite; a setting may be "". Methods without a clear
    difference stand at the end.
    """
    found = [
        (method, suite, how, said_of(d))
        for suite, mine in told.items()
        for method, how, d in mine
        if d is not None
    ]
    parts, idle = [], []
    for method in dict.fromkeys(method for method, *_ in found):
        verdicts = [
            _at([(suite, how) for one, suite, how, said in found if (one, said) == (method, word)])
            for word in ("gains", "loses")
        ]
        clear = ", ".join(
            f"{word} {places}" for word, places in zip(("gains", "loses"), verdicts) if places
        )
        parts, idle = ([*parts, f"{method} {clear}"], idle) if clear else (parts, [*idle, method])
    parts += (
        [f"no clear difference anywhere for {listed(idle)}{'' if parts else ' (a null result)'}"]
        if idle
        else []
    )
    return sentence(f"{lead}{'; '.join(parts)}" if parts else "")


def _at(places: Sequence[tuple[str, str]]) -> str:
    """Suites as a list inside a sentence, each with its settings in brackets."""
    settings = {
        suite: ", ".join(how for one, how in places if one == suite and how) for suite, _ in places
    }
    return listed(
        [f"{where(suite)}{f' ({hows})' if hows else ''}" for suite, hows in settings.items()]
    )


def sentence(text: str) -> str:
    """`text` with a capital letter and a full stop; without words, that nothing was measured."""
    return f"{capital(text)}." if text else "Not measured yet."


def quality_panel(suite: str, more: str = "", metric: str = "", xlabel: str = "") -> Panel:
    """The panel of a suite's differences to FM."""
    metric = metric or quality(suite)
    name = f"{TITLES.get(suite, suite)}{f': {more}' if more else ''}"
    return Panel(
        name,
        f"{NAMES.get(metric, metric)} minus FM's",
        "higher" if metric == "recall" else "lower",
        xlabel,
    )


def rows_figure(blocks: Mapping[Panel, Told], marked: Collection[str] = ()) -> Picture | None:
    """`difference_rows` of what was measured; None where nothing was."""
    found = {
        panel: [(label, d) for label, d in rows if d is not None] for panel, rows in blocks.items()
    }
    found = {panel: rows for panel, rows in found.items() if rows}
    return difference_rows(found, marked) if found else None
