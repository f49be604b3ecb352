"""REPA's teacher if there is no DINOv2: a small frozen classifier of the real data. Its features
are the target.

    image (B, C, S, S) in [-1, 1]  ->  map (B, 48, S', S')
    averaged to the model's grid  ->  tokens (B, T, 48)

It is never the judge that measures samples. It has another shape and another seed, and it learns
from the generator's training rows only. That of "words" learns the kinds of things: it sees no
captions, and of the pictures those with one thing. Reference: Yu et al. 2024 (REPA,
arXiv:2410.06940), with a smaller teacher.
"""

import functools
import hashlib
import json
import math
import warnings
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfm_lite._internal.checks import check_choice, check_count, full_precision
from cfm_lite._internal.files import fingerprint
from cfm_lite.data import words
from cfm_lite.data.captions import KINDS
from cfm_lite.data.datasets import PICTURES, codec_for, each_image_set, image_rows
from cfm_lite.data.root import cache_root, keep
from cfm_lite.errors import ConfigError
from cfm_lite.models.classifier import UNREADABLE, JudgeSettings, one_thread, restored, trained

__all__ = ["SETTINGS", "SmallTeacher", "Tokens", "teacher_for", "train_teacher"]

WIDTH, SEED = 48, 1
SETTINGS = each_image_set(
    JudgeSettings(size=8, stride=1, channels=24, epochs=30, batch=64),
    JudgeSettings(size=28, stride=2, channels=24, epochs=1, batch=128),
    JudgeSettings(size=32, stride=2, channels=48, epochs=10, batch=128, shift=4, colours=3),
    JudgeSettings(size=16, stride=2, channels=48, epochs=10, batch=128, shift=2, colours=3),
) | {"words": JudgeSettings(*(32, 2, 48), epochs=30, batch=128, colours=3, classes=len(KINDS))}


class SmallTeacher(nn.Module):
    """A classifier of "digits", "mnist", "cifar10" or "words".

    `accuracy` is measured on unseen rows; before training it is NaN.

    Raises ConfigError for an unknown data set.

    >>> SmallTeacher("digits").features(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 48, 8, 8])
    """

    def __init__(self, dataset: str) -> None:
        super().__init__()
        check_choice("the teacher's dataset", dataset, SETTINGS)
        own, self.dataset, self.accuracy = SETTINGS[dataset], dataset, math.nan
        self.body = nn.Sequential(
            nn.Conv2d(own.colours, own.channels, 5, stride=own.stride, padding=2),
            nn.SiLU(),
            nn.Conv2d(own.channels, WIDTH, 3, stride=own.stride, padding=1),
            nn.SiLU(),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
        )
        self.head = nn.Linear(WIDTH, own.classes)

    @full_precision()
    def features(self, x: Tensor) -> Tensor:
        """The map (B, 48, S', S') of images `x` (B, C, S, S) in [-1, 1]."""
        return self.body(x.to(self.head.weight.dtype))

    @full_precision()
    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes)."""
        return self.head(F.silu(self.features(x)).mean((2, 3)))


class Tokens:
    """The teacher as `Alignment` needs it: a network's data in, features (B, grid * grid, `dim`)
    out.

    >>> Tokens(SmallTeacher("digits"), grid=4)(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 16, 48])
    """

    dim = WIDTH

    def __init__(self, teacher: SmallTeacher, grid: int) -> None:
        self.teacher, self.grid = teacher, check_count("grid", grid)

    def __call__(self, x: Tensor) -> Tensor:
        device, codec = self.teacher.head.weight.device, codec_for(self.teacher.dataset)
        if device != x.device:
            self.teacher.to(x.device)
        x = x if codec is None else codec.decode(x)
        return F.adaptive_avg_pool2d(self.teacher.features(x), self.grid).flatten(2).mT


def train_teacher(dataset: str, *, seed: int = SEED, limit: int | None = None) -> SmallTeacher:
    """A frozen teacher of "digits" (seconds), "mnist", "words" (a minute) or "cifar10".

    Its accuracy is that on held-out rows. `limit` takes only the first rows. The global random
    state stays as it was. Raises ConfigError and DataError.
    """
    check_choice("the teacher's dataset", dataset, SETTINGS)
    seed = check_count("seed", seed, low=0)
    (x, y), (x_test, y_test) = _rows(dataset, "train", limit), _rows(dataset, "test")
    teacher = trained(lambda: SmallTeacher(dataset), x, y, SETTINGS[dataset], seed)
    with one_thread(), torch.no_grad():
        hits = torch.cat([teacher(part).argmax(1) for part in x_test.split(1024)]) == y_test
    teacher.accuracy = float(hits.double().mean())
    return teacher


def _rows(dataset: str, split: str, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """Images (N, C, S, S) in [-1, 1] and their classes; of words, the pictures of one thing among
    the first rows, and its kind.
    """
    if dataset != "words":
        return image_rows(dataset, split, limit)
    split, most = ("train", PICTURES) if split == "train" else ("judge", 6_000)
    shown = words.load(split, min(limit or most, most))
    alone = [row for row, scene in enumerate(shown.scenes) if len(scene.things) == 1]
    kinds = [KINDS.index(shown.scenes[row].things[0].kind) for row in alone]
    return shown.x1[alone], torch.tensor(kinds)


@functools.cache
def teacher_for(dataset: str) -> SmallTeacher:
    """The teacher of a data set with its usual seed: from the cache, or trained now and kept
    there.

    Raises ConfigError for an unknown data set.
    """
    check_choice("the teacher's dataset", dataset, SETTINGS)
    digest = hashlib.sha256(repr((SETTINGS[dataset], WIDTH, SEED)).encode()).hexdigest()[:12]
    path = cache_root() / "teachers" / f"teacher-{dataset}-{digest}.safetensors"
    found = _read(path, dataset)
    if found is not None:
        return found
    teacher = train_teacher(dataset)
    weights = {name: value.contiguous() for name, value in teacher.state_dict().items()}
    keep(
        safetensors.torch.save(
            weights, {"accuracy": repr(teacher.accuracy), "sha256": _hash(teacher)}
        ),
        path,
        "the teacher",
    )
    return teacher


def _hash(teacher: SmallTeacher) -> str:
    facts = json.dumps([teacher.dataset, repr(teacher.accuracy)])
    return fingerprint(teacher.state_dict(), facts, shapes=False)


def _read(path: Path, dataset: str) -> SmallTeacher | None:
    """The teacher in a cached file; None if there is no file, or a damaged one."""
    if not path.is_file():
        return None
    try:
        teacher, facts = restored(path, lambda facts: SmallTeacher(dataset))
        teacher.accuracy = float(facts["accuracy"])
        if _hash(teacher) != facts["sha256"]:
            raise ConfigError("its weights differ from their hash")
    except UNREADABLE as error:
        warnings.warn(
            f"{path} is damaged ({error}); the teacher is trained again.", UserWarning, stacklevel=2
        )
        return None
    return teacher
