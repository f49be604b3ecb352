"""What a network takes and gives. config.json keeps it as "spec", so sampling loads no data set."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cfm_lite.data.datasets import dataset
from cfm_lite.errors import CheckpointError, ConfigError
from cfm_lite.runs.recipe import Recipe

__all__ = ["Spec", "spec_of"]


@dataclass(frozen=True)
class Spec:
    """The dims of one sample, the kind of the condition `y`, for latents the VAE that made them,
    and for captions the text encoder that read them.

    >>> Spec((2,), num_classes=3).as_dict()
    {'shape': [2], 'condition': 'labels', 'classes': 3}
    """

    shape: tuple[int, ...]
    num_classes: int
    condition: str = "labels"  # (B,) integers below num_classes; or "captions"
    vae: str | None = None  # a name or a folder; None for points and pixels
    vae_fingerprint: str | None = None
    text: str | None = None  # a name or a folder; None for labels and word numbers
    text_fingerprint: str | None = None
    text_shape: tuple[int, ...] = ()  # (L, D) of the features of a caption

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain values, for config.json."""
        said = {
            "shape": list(self.shape),
            "condition": self.condition,
            "classes": self.num_classes,
        }
        of_latents = {"vae": self.vae, "vae_fingerprint": self.vae_fingerprint}
        of_text = {
            "text": self.text,
            "text_fingerprint": self.text_fingerprint,
            "text_shape": list(self.text_shape),
        }
        return said | (of_latents if self.vae else {}) | (of_text if self.text else {})


def spec_of(config: Mapping[str, Any], recipe: Recipe) -> Spec:
    """The spec in a run's config.json. For an older run: what it says of its data, or the data set
    itself.

    Raises CheckpointError if the spec is damaged, and DataError if the data set is not there.

    >>> spec_of({"spec": Spec((2,), num_classes=3).as_dict()}, Recipe()).num_classes
    3
    """
    said = config.get("spec", config.get("data"))
    try:
        if said is not None and "shape" in said:
            classes = said.get("classes") if "spec" in config else said["num_classes"]
            return Spec(
                tuple(map(int, said["shape"])),
                int(classes),
                str(said.get("condition", "labels")),
                vae=said.get("vae"),
                vae_fingerprint=said.get("vae_fingerprint"),
                text=said.get("text"),
                text_fingerprint=said.get("text_fingerprint"),
                text_shape=tuple(map(int, said.get("text_shape", ()))),
            )
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"config.json is damaged: its spec cannot be read ({error!r}). Copy it from the run "
            "again."
        ) from None
    try:
        data = dataset(recipe.dataset)
    except ConfigError:  # the recipe of a user's own data, or of latents
        raise CheckpointError(
            f"config.json has no spec, and {recipe.dataset!r} is not a known data set. Train "
            "again, or write the spec into it: shape, condition, classes."
        ) from None
    return Spec(data.shape, data.num_classes)
