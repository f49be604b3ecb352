"""A run is a trained recipe: just trained, opened from its folder, or from an official file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cfm_lite._internal.checks import check_choice, check_device, load_weights
from cfm_lite._internal.files import hash_of_file
from cfm_lite._internal.places import AnyPath, expanded
from cfm_lite.data.datasets import codec_for, dataset
from cfm_lite.engine import checkpoint
from cfm_lite.engine.average import share_of_start
from cfm_lite.errors import CheckpointError, ConfigError, DataError
from cfm_lite.models import load_official
from cfm_lite.models.text import ClipText
from cfm_lite.runs.folder import (
    CONFIG,
    MEAN,
    Located,
    is_file_of_weights,
    located,
    read_config,
    read_mean,
)
from cfm_lite.runs.imagenet import MODELS, imagenet
from cfm_lite.runs.recipe import Recipe, build_model, from_dict
from cfm_lite.runs.spec import Spec, spec_of

__all__ = ["Run"]

# the networks in a checkpoint, and how their names begin
AVERAGES = {"ema": "ema.", "ema2": "ema2.", "model": "objective.model."}
_NAMES = {"ema": "the average", "ema2": "the average", "model": "the model"}
OFFICIAL = "SiT-XL/2"  # the network of most official files
VAE = "sd-vae-ft-ema"  # what the official programs decode with unless they are told otherwise


@dataclass
class Run:
    """A trained recipe. `model` is the averaged network, `log` one dict per logged step, `first`
    the step it started from.

    A run that was opened also knows its `place`, its `average`, the hash of its `weights`, and the
    `data` in its config.json.

    >>> Run(Recipe(ema=0.9), nn.Linear(2, 2), step=500, seconds=1.5).summary
    '500 steps, 1.5 s'
    """

    recipe: Recipe
    model: nn.Module
    step: int = 0
    seconds: float = 0.0
    log: list[dict[str, float]] = field(default_factory=list)
    first: int = 0
    spec: Spec | None = None
    place: "Located | None" = None
    average: str = "ema"
    weights: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    encoder: Any = None  # of captions, where a frozen one reads them; opened when it is needed

    @classmethod
    def open(
        cls,
        path: AnyPath,
        *,
        average: str = "ema",
        device: torch.device | str = "cpu",
        format: str = "sit",
        network: str = OFFICIAL,
        text: str | None = None,
    ) -> "Run":
        """The run that `path` means (see `located`), at the named checkpoint or the newest whole
        one.

        `average` is "ema", "ema2" (the second average of a run that kept one), or "model" (the
        trained parameters). `path` may also be an official file: `format` ("sit" or "repa") and
        `network` say what it holds. `text` is the place of its text encoder, if that has moved.
        Raises CheckpointError if there is no run, ConfigError for a wrong setting, and DataError
        for another text encoder.
        """
        check_choice("average", average, AVERAGES)
        device = check_device(device)
        if is_file_of_weights(expanded(path)):
            return _official(expanded(path), average, device, format, network)
        for name, value, usual in (("format", format, "sit"), ("network", network, OFFICIAL)):
            if value != usual:
                raise ConfigError(
                    f"{name} is {value!r:.60}, which says what an official file holds, and {path} "
                    f"is none: a run knows it. Leave {name} out."
                )
        home, step = located(path)
        # a checkpoint without its run holds the recipe too
        config = read_config(path) if step is None or (home / CONFIG).exists() else {}
        place = Located(home, Located(home, step).checkpoint)
        saved = checkpoint.load(place.checkpoint)
        recipe = from_dict(saved.state["config"])
        if config and recipe.dataset != from_dict(config["recipe"]).dataset:
            raise CheckpointError(
                f"{place.checkpoint} is a checkpoint of a run on {recipe.dataset}; it lies in the "
                "wrong folder."
            )
        spec = spec_of(config, recipe)
        model = build_model(recipe, spec)
        load_weights(model, _averaged(saved, average), f"{_NAMES[average]} in {saved.path}")
        run = cls(
            recipe,
            model.to(device).eval(),
            saved.step,
            first=saved.step,
            spec=spec,
            place=place,
            average=average,
            weights=str(json.loads((saved.path / checkpoint.MANIFEST).read_bytes())["self"]),
            data=config["data"] if isinstance(config.get("data"), dict) else {},
        )
        if text is not None:
            run.encoder = run.open_text(text)
        return run

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What its network takes: float32, or float64 where the weights are."""
        wide = next(self.model.parameters()).dtype == torch.float64
        return torch.float64 if wide else torch.float32

    @property
    def summary(self) -> str:
        """What a command prints: how far the run came, or that there was nothing left to do."""
        if self.first == self.step > 0:
            return f"all {self.step} steps were done before"
        warm = getattr(self.recipe, "ema_warmup", True)
        start = share_of_start(self.recipe.ema, warm, self.step)
        or_warm = "" if warm else ", or --set ema_warmup=true"
        notes = []
        if start > 0.05:
            notes.append(
                f" ({start:.0%} of the average is still the network at the start: train "
                f"longer{or_warm})"
            )
        if self.step < self.recipe.warmup:
            notes.append(
                f" (the learning rate was still rising, over {self.recipe.warmup} steps: train "
                f"longer, or --set warmup={self.step // 10})"
            )
        return f"{self.step} steps, {self.seconds:.1f} s{''.join(notes)}"

    def features(self, said: Sequence[str]) -> Tensor:
        """The features (B, L, D) of captions, by the text encoder that the run was trained with."""
        self.encoder = self.encoder or self.open_text(str(self.spec and self.spec.text))
        return self.encoder(said)

    def open_text(self, place: str) -> ClipText:
        """The text encoder at `place`, on the network's device.

        DataError unless it is the one that the run was trained with.
        """
        trained = self.spec and self.spec.text_fingerprint
        if not trained:
            raise ConfigError(
                "--text is for a run whose captions a text encoder reads, and this run has no text "
                "encoder; leave it out."
            )
        encoder = ClipText(place)
        if encoder.fingerprint != trained:
            raise DataError(
                f"the text encoder {place!r} is not the one that the run was trained with: its "
                f"fingerprint is {encoder.fingerprint[:12]}; the right one has {trained[:12]}. "
                "Give the right one with --text."
            )
        return encoder.to(self.device)

    def images(self, x: Tensor) -> Tensor:
        """The images that samples `x` stand for: decoded, where the run's data set has a codec."""
        codec = codec_for(self.recipe.dataset)
        return x if codec is None else codec.decode(x)

    def mean(self) -> Tensor:
        """E[x1] of the training data: the file that a run on latents keeps, else that of its data
        set.

        DataError if it is missing.
        """
        if self.spec is None or self.spec.vae is None:
            return dataset(self.recipe.dataset).mean
        file = None if self.place is None else self.place.folder / MEAN
        if file is None or not file.exists():
            raise DataError(
                f"the mean of the latents is not known: {file or 'the run'} is missing. Copy "
                "mean.npy of the latents there."
            )
        return read_mean(file, str(self.data.get("mean")))


def _averaged(saved: checkpoint.Checkpoint, average: str) -> dict[str, Tensor]:
    """The weights of one of a checkpoint's networks, under the model's own names."""
    prefix = AVERAGES[average]
    found = {
        name.removeprefix(prefix): value
        for name, value in saved.weights.items()
        if name.startswith(prefix)
    }
    if not found and average == "ema2":
        raise CheckpointError(
            f"{saved.path} keeps no second average; use --average ema or model, or train with "
            "--set ema2=0.9999."
        )
    return found


def _official(path: Path, average: str, device: torch.device, format: str, network: str) -> Run:
    """An official file as a run. Its latents are those of sd-vae-ft-ema."""
    if not path.is_file():
        raise CheckpointError(
            f"there is no file {path}. Give a run's folder, or a file of weights."
        )
    if average != "ema":
        raise ConfigError(
            f"--average {average} is for runs of cfm_lite: {path} holds one network. Leave it out."
        )
    check_choice("model", network, MODELS)
    model = load_official(path, format=format, **MODELS[network])
    side = model.input_size
    recipe = imagenet(
        "sit", model=network, size=8 * side, learn_sigma=model.learn_sigma, qk_norm=model.qk_norm
    )
    spec = Spec((model.in_channels, side, side), model.num_classes, vae=VAE)
    return Run(recipe, model.to(device).eval(), spec=spec, weights=hash_of_file(path))
