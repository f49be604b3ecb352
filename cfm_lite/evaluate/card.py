"""The card of a measurement: everything that a Fréchet distance depends on.

    method, average, sampler, codec, features, reference

Each row and a few printed lines carry it. Reason: readers compare two numbers with the same name,
and most differences between such numbers come from these settings.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cfm_lite import runs
from cfm_lite._internal.files import hash_of_json
from cfm_lite.errors import DataError
from cfm_lite.runs.imagenet import MODELS, TEXT_MODELS, ImageNet, preset_of
from cfm_lite.runs.recipe import Recipe, from_dict
from cfm_lite.samplers import evaluations

__all__ = ["card_of", "method_name", "told"]

Row = dict[str, Any]
_NAMED, _SHORT = 16, 4  # captions that a row names, and those that a line of the card names


def method_name(recipe: Recipe, debias: bool = False) -> str:
    """The run's name: its method or ImageNet preset, the second method, and whether it is
    debiased.

    >>> method_name(Recipe(method="vecor"), debias=True)
    'vecor_debiased'
    """
    name = preset_of(recipe) if isinstance(recipe, ImageNet) else recipe.method
    return name + f"+{recipe.also}" * bool(recipe.also) + "_debiased" * debias


def card_of(
    settings: Mapping[str, Any] | None,
    *,
    samples: int,
    features: str,
    features_hash: str | None,
    reference: str,
) -> Row:
    """The fields that all rows of one measurement share. `settings` is None for samples of other
    programs.

    `settings` is what `cfm-lite sample` saved with the samples: recipe, step, and how they were
    drawn. Raises DataError if a part of it is missing or of the wrong type.

    >>> about = {"features": "judge of digits", "features_hash": None, "reference": "held-out rows"}
    >>> card = card_of({"recipe": Recipe().as_dict(), "step": 500}, samples=100, **about)
    >>> card["method"], card["nfe"], card["steps"]
    ('fm', 50, 500)
    """
    made_by = runs.facts()
    measured = {
        "samples": samples,
        "features": features,
        "features_hash": features_hash,
        "reference": reference,
        "cfm_lite": made_by["cfm_lite"],
        "commit": made_by["commit"],
    }
    if settings is None:
        return measured
    try:
        return {**_drawn(from_dict(settings["recipe"]), settings), **measured}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"the settings of the samples are damaged ({error}). Draw the samples again."
        ) from None


def _drawn(recipe: Recipe, settings: Mapping[str, Any]) -> Row:
    """How the samples were drawn, and from which network."""
    solver = settings.get("solver", recipe.solver)
    steps = settings.get("steps", recipe.sample_steps)
    guidance = float(settings.get("guidance", recipe.guidance))
    interval = [float(end) for end in settings.get("interval", (0.0, 1.0))]
    cost = evaluations(solver, steps, guidance, (interval[0], interval[1]))
    average = settings.get("average", "ema")
    said, away = list(settings.get("prompts") or ()), settings.get("negative")
    decay = {"ema": recipe.ema, "ema2": recipe.ema2}.get(average)
    return {
        "method": method_name(recipe, bool(settings.get("debias", False))),
        **({"also": recipe.also} if recipe.also else {}),
        "network": _network(recipe),
        "dataset": recipe.dataset,
        "path": recipe.path,
        "seed": settings.get("seed", recipe.seed),
        "steps": settings["step"],
        "nfe": cost.nfe,
        "sampler": solver,
        "guidance": guidance,
        "interval": interval,
        "sampler_steps": steps,
        "network_rows": cost.rows,
        **({"boost": recipe.boost, "boost_power": recipe.boost_power} if recipe.boost else {}),
        "batch": settings.get("batch"),
        "labels": f"{len(said):,} captions" if said else settings.get("labels", "turn"),
        **({"captions": said[:_NAMED], "captions_hash": hash_of_json(said)} if said else {}),
        **({"negative": away} if away else {}),
        "average": average,
        "average_decay": decay,
        "weights": settings.get("weights"),
        "codec": settings.get("vae"),
        "codec_hash": settings.get("vae_fingerprint"),
        **(
            {"text": settings["text"], "text_hash": settings.get("text_fingerprint")}
            if said and settings.get("text")
            else {}
        ),
    }


def _network(recipe: Recipe) -> str:
    """The name of the network; of a named one also the sizes that --set has changed."""
    if not isinstance(recipe, ImageNet):
        return recipe.model
    sizes = (MODELS | TEXT_MODELS)[recipe.network]
    other = {name: getattr(recipe, name) for name in sizes if getattr(recipe, name) != sizes[name]}
    said = ", ".join(f"{name}={value}" for name, value in other.items())
    return f"{recipe.network} with {said}" if other else recipe.network


def told(row: Mapping[str, Any]) -> list[str]:
    """The card in a few lines, from any row of the measurement.

    >>> about = {"features": "judge of digits", "features_hash": None, "reference": "held-out rows"}
    >>> told(card_of({"recipe": Recipe().as_dict(), "step": 500}, samples=100, **about))[0]
    '100 samples of fm (mlp on digits), 500 training steps, average ema 0.999'
    """
    if "method" in row:
        low, high = row["interval"]
        where = "" if (low, high) == (0, 1) else f" in [{low:g}, {high:g}]"
        guided = (
            "no guidance"
            if row["guidance"] == 1
            else f"guidance {row['guidance']:g}{where} ({row['network_rows']} rows each)"
        )
        away = f" away from {row['negative']!r}" if "negative" in row else ""
        faster = (
            f", boost {row['boost']:g} (1 - t)^{row['boost_power']:g}" if "boost" in row else ""
        )
        drawn = row["labels"] if "captions" in row else f"labels {row['labels']}"
        if 0 < len(row.get("captions", ())) <= _SHORT:
            drawn += f" ({', '.join(map(repr, row['captions']))})"
        decay = f" {row['average_decay']:g}" if row["average_decay"] else ""
        lines = [
            f"{row['samples']:,} samples of {row['method']} ({row['network']} on "
            f"{row['dataset']}), {row['steps']:,} training steps, "
            f"average {row['average']}{decay}{_short(row['weights'])}",
            f"sampler {row['sampler']}, {row['sampler_steps']} steps, {row['nfe']} evaluations "
            f"each, {guided}{away}{faster}; seed {row['seed']}, "
            f"{drawn}; codec {row['codec'] or 'none'}{_short(row['codec_hash'])}",
        ]
    else:
        lines = [
            f"{row['samples']:,} samples; nothing else is known of them, because they are no "
            "samples.npz beside a settings.json of cfm-lite sample"
        ]
    lines.append(
        f"features {row['features']}{_short(row['features_hash'])}; cfm_lite {row['cfm_lite']}, "
        f"commit {_cut(row['commit'])}"
    )
    if "text" in row:
        lines.append(f"captions read by {row['text']}{_short(row['text_hash'])}")
    # the row keeps the whole path; a reader needs only the name
    held = Path(row["reference"])
    name = held.name if held.is_absolute() else row["reference"]
    known, holds = _short(row.get("reference_hash")), row.get("reference_holds", "")
    return [*lines, f"reference {name}{known}: {holds}".rstrip(": ")]


def _short(digest: str | None) -> str:
    return f" ({_cut(digest)})" if digest else ""


def _cut(digest: str | None) -> str:
    return digest[:12] if digest else "unknown"
