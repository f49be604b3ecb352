"""Judges: small networks trained on the real data. Their labels and features measure samples.

    image (B, C, S, S) in [-1, 1]  ->  features (B, 64), the last hidden layer  ->  logits (B, 10)

On small images, Fréchet distance, precision and recall are taken in these 64 features. They are
named after the judge: they are not the papers' FID. A judge's accuracy is measured on rows that it
has not seen. The digits' judge learns only from rows that no generator sees.
"""

import hashlib
import json
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from cfm_lite._internal.checks import (
    check_choice,
    check_count,
    check_floating,
    full_precision,
    in_one_line,
)
from cfm_lite._internal.files import fingerprint, publish
from cfm_lite._internal.places import AnyPath, expanded
from cfm_lite.data.datasets import each_image_set, image_rows
from cfm_lite.data.root import cache_root, keep
from cfm_lite.errors import CheckpointCorruptError, CheckpointError, ConfigError
from cfm_lite.metrics import accuracy
from cfm_lite.models.classifier import UNREADABLE, JudgeSettings, one_thread, restored, trained

__all__ = [
    "SETTINGS",
    "Judge",
    "assess",
    "judge_for",
    "load_judge",
    "save_judge",
    "train_judge",
]

FEATURES, CLASSES = 64, 10
# it ships, so that every machine measures digits by the same judge
SHIPPED = Path(__file__).parents[1] / "checkpoints"


SETTINGS = each_image_set(
    JudgeSettings(size=8, stride=1, channels=24, epochs=40, batch=64),
    JudgeSettings(size=28, stride=2, channels=16, epochs=2, batch=128),
    JudgeSettings(size=32, stride=2, channels=48, epochs=12, batch=128, shift=4, colours=3),
    JudgeSettings(size=16, stride=1, channels=32, epochs=12, batch=128, shift=2, colours=3),
)


class Kept(nn.Module):
    """A judge that can be kept in a file: of which data set, from which seed, how accurate."""

    def __init__(self, dataset: str) -> None:
        super().__init__()
        self.dataset, self.seed, self.accuracy = dataset, 0, math.nan

    @property
    def facts(self) -> dict[str, str]:
        """What a judge's file holds beside the weights, as text."""
        return {"dataset": self.dataset, "seed": str(self.seed), "accuracy": repr(self.accuracy)}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the facts and of every weight, with name and shape. Results name the judge by
        it.
        """
        return fingerprint(self.state_dict(), json.dumps(self.facts, sort_keys=True))


class Judge(Kept):
    """A classifier of "digits", "mnist" or "cifar10" images.

    `accuracy` is measured on unseen rows (NaN before training). Raises ConfigError for an unknown
    data set, and for images of another shape or dtype.

    >>> Judge("digits")(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(self, dataset: str) -> None:
        check_choice("dataset", dataset, SETTINGS)
        super().__init__(dataset)
        own = SETTINGS[dataset]
        self.shape = (own.colours, own.size, own.size)
        c, side = own.channels, own.size // own.stride // 2
        self.body = nn.Sequential(
            nn.Conv2d(own.colours, c, 2 * own.stride + 1, stride=own.stride, padding=own.stride),
            nn.ReLU(),
            nn.Conv2d(c, 2 * c, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(2 * c, 2 * c, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2 * c * side * side, FEATURES),
            nn.ReLU(),
        )
        self.head = nn.Linear(FEATURES, CLASSES)

    @full_precision()
    def features(self, x: Tensor) -> Tensor:
        """The last hidden layer (B, 64), all >= 0, of images `x` (B, C, S, S) in [-1, 1].

        Raises ConfigError for images of another shape, or of integers.
        """
        if tuple(x.shape[1:]) != self.shape:
            takes = ", ".join(map(str, self.shape))
            raise ConfigError(
                f"x has shape {tuple(x.shape)}; this judge of {self.dataset} takes (B, {takes})."
            )
        check_floating(x=x)
        return self.body(x.to(self.head.weight.dtype))

    @full_precision()
    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 10) of images `x` (B, C, S, S) in [-1, 1]."""
        return self.head(self.features(x))


@torch.no_grad()
def assess(judge: Judge, x: Tensor, chunk: int = 1024) -> tuple[Tensor, Tensor]:
    """Logits (N, 10) and features (N, 64) of images `x` (N, C, S, S), `chunk` at a time, on the
    judge's device.

    Raises ConfigError for images of another shape, or a chunk below 1.

    >>> logits, features = assess(judge_for("digits"), torch.zeros(4, 1, 8, 8))
    >>> logits.shape, features.shape
    (torch.Size([4, 10]), torch.Size([4, 64]))
    """
    chunk = check_count("chunk", chunk)
    features = torch.cat(
        [judge.features(part.to(judge.head.weight.device)) for part in x.split(chunk)]
    )
    return judge.head(features), features


def train_judge(dataset: str = "digits", *, seed: int = 0, limit: int | None = None) -> Judge:
    """A frozen judge of "digits" (seconds), "mnist" (half a minute) or "cifar10".

    Its accuracy is that on unseen rows. `limit` takes only the first rows. The same seed gives the
    same judge on the same machine, with any number of threads. The global random state stays as it
    was. Raises ConfigError for an unknown data set, a seed below 0 or a limit below 1, and
    DataError for missing files.
    """
    seed = check_count("seed", seed, low=0)
    learn, test = ("judge_fit", "judge_test") if dataset == "digits" else ("train", "test")
    (x, y), (x_test, y_test) = image_rows(dataset, learn, limit), image_rows(dataset, test)
    judge = trained(lambda: Judge(dataset), x, y, SETTINGS[dataset], seed)
    with one_thread():
        judge.seed, judge.accuracy = seed, float(accuracy(assess(judge, x_test)[0], y_test))
    return judge


def save_judge(judge: Kept, path: AnyPath) -> None:
    """Write the weights as safetensors, with facts and fingerprint in the header, whole or not at
    all.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "judge.safetensors"
    >>> save_judge(Judge("digits"), path)
    >>> load_judge(path).dataset
    'digits'
    """
    publish(_as_file(judge), expanded(path))


def _as_file(judge: Kept) -> bytes:
    weights = {
        name: weight.detach().cpu().contiguous() for name, weight in judge.state_dict().items()
    }
    return safetensors.torch.save(weights, judge.facts | {"fingerprint": judge.fingerprint})


def load_judge(path: AnyPath, kind: type[Kept] = Judge) -> Any:
    """The judge of a `kind` in a file that `save_judge` wrote, frozen, on the host.

    Raises CheckpointError if there is no file, and CheckpointCorruptError if its content does not
    fit its fingerprint.

    >>> load_judge(SHIPPED / judge_file("digits")).seed
    0
    """
    path = expanded(path)
    if not path.is_file():
        raise CheckpointError(
            f"there is no judge {path}; train_judge(...) makes one, save_judge(judge, path) writes "
            "it."
        )
    try:
        judge, facts = restored(path, lambda facts: kind(facts["dataset"]))
        judge.seed, judge.accuracy = int(facts["seed"]), float(facts["accuracy"])
        intact = judge.fingerprint == facts["fingerprint"]
    except UNREADABLE as error:
        reason = in_one_line(error)
        raise CheckpointCorruptError(
            f"{path} is damaged, or not a judge ({reason}); train it again with train_judge."
        ) from None
    if not intact:
        raise CheckpointCorruptError(
            f"{path} is damaged: its content differs from its fingerprint; train it again with "
            "train_judge."
        )
    return judge


def judge_file(dataset: str) -> str:
    """The file name of the judge with seed 0. Other settings give another name."""
    settings = hashlib.sha256(repr(SETTINGS[dataset]).encode()).hexdigest()[:12]
    return f"judge-{dataset}-{settings}.safetensors"


def judge_for(dataset: str) -> Judge:
    """The judge of a data set with seed 0: the shipped one, else a cached one, else trained now and
    cached.

    Raises ConfigError for an unknown data set.

    >>> judge_for("digits").accuracy > 0.95
    True
    """
    check_choice("dataset", dataset, SETTINGS)
    path = cache_root() / "judges" / judge_file(dataset)
    for known in (SHIPPED / judge_file(dataset), path):
        try:
            return load_judge(known)
        except CheckpointCorruptError as error:
            warnings.warn(f"{error} It is trained again.", UserWarning, stacklevel=2)
        except CheckpointError:  # not there
            continue
    # it can take minutes, even where a sweep is only listed
    print(f"cfm-lite: note: training the judge of {dataset}, once.", file=sys.stderr, flush=True)
    judge = train_judge(dataset)
    keep(_as_file(judge), path, "the judge")
    return judge


# python -m cfm_lite.evaluate.judges: the recorded command that made the shipped judge
if __name__ == "__main__":
    save_judge(train_judge("digits"), SHIPPED / judge_file("digits"))
