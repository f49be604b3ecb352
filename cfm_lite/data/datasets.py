"""A named data set, split once: what a generator learns from, and what is held out from it."""

import functools
import hashlib
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from cfm_lite._internal.checks import check_choice, check_count
from cfm_lite.data import cifar10, digits, mnist, toy, words
from cfm_lite.data.pca import PCA
from cfm_lite.draws import keyed_generator
from cfm_lite.theory import GaussianMixture

__all__ = ["NAMES", "DataSet", "codec_for", "dataset", "each_image_set", "image_rows"]

NAMES = ("digits", "digits_pca", *mnist.NAMES, *cifar10.NAMES, "words", *toy.TOYS)
PICTURES = 20_000  # of "words"
T = TypeVar("T")


class DataSet(NamedTuple):
    """Training data `x1` (N, *dims), labels `y` (N,), held-out data, and the exact distribution if
    known.

    >>> x1, y = torch.ones(6, 2), torch.zeros(6)
    >>> data = DataSet("mine", x1, y, x1, y, num_classes=1)
    >>> data.shape, data.mean
    ((2,), tensor([1., 1.], dtype=torch.float64))
    """

    name: str
    x1: Tensor
    y: Tensor
    held_x1: Tensor
    held_y: Tensor
    num_classes: int
    mixture: GaussianMixture | None = None
    codec: Any = None  # from x1 to the images that it stands for, where those are something else
    condition: str = "labels"  # or "captions": y is then (N, L), and there are no classes

    @property
    def shape(self) -> tuple[int, ...]:
        """The dims of one sample."""
        return tuple(self.x1.shape[1:])

    @property
    def mean(self) -> Tensor:
        """E[x1] (*dims) of the training rows, in float64."""
        return self.x1.double().mean(0)

    @property
    def about(self) -> dict[str, Any]:
        """What a run's config.json says of its data. `fingerprint` is the SHA-256 of training rows
        and labels.
        """
        digest = hashlib.sha256()
        for tensor in (self.x1, self.y):
            digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
            # as bytes, because NumPy has no bfloat16
            content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(content.numpy().data)
        rows, shape = len(self.x1), list(self.shape)
        return {
            "name": self.name,
            "rows": rows,
            "shape": shape,
            "num_classes": self.num_classes,
            "fingerprint": digest.hexdigest(),
        }

    @property
    def images(self) -> "DataSet":
        """The set in pixels: decoded if it holds latents, else the set itself."""
        if self.codec is None:
            return self
        decode = self.codec.decode
        return self._replace(
            name=PIXELS.get(self.name, self.name),
            x1=decode(self.x1),
            held_x1=decode(self.held_x1),
            codec=None,
        )


def dataset(name: str, *, points: int = 10_000, limit: int | None = None) -> DataSet:
    """Load an image set, or make `points` points of a 2D toy set and as many held-out ones.

    Image sets are "digits", "digits_pca", "mnist", "fashion_mnist", "cifar10",
    "cifar10-jpeg75" and "words". "cifar10-16" and "cifar10-jpeg75-16" have half the side.
    "digits_pca" holds the 32 leading principal components of the digits, with a codec. "words" has
    captions in place of labels, and a codec too. `limit` cuts the training rows. Raises ConfigError
    for an unknown name, and DataError for files that are missing or damaged.

    >>> data = dataset("two_classes", points=100)
    >>> data.x1.shape, data.held_x1.shape, data.num_classes
    (torch.Size([100, 2]), torch.Size([100, 2]), 2)
    """
    check_choice("dataset", name, NAMES)
    if limit is not None:
        limit = check_count("limit", limit)
    if name == "digits_pca":
        return _encoded(dataset("digits", limit=limit), name)
    if name == "words":
        x1, y, *_ = words.load("train", min(limit or PICTURES, PICTURES))
        held_x1, held_y, *_ = words.load("seen", 2000)
        return _encoded(DataSet(name, x1, y, held_x1, held_y, 0, condition="captions"), name)
    if name in toy.TOYS:
        points = check_count("points", points)
        (x1, y), held = (
            toy.load(name, points, keyed_generator("cpu", 0, name, part))
            for part in ("train", "held")
        )
    else:
        (x1, y), held = image_rows(name, "train", limit), image_rows(name, "test")
    classes = int(torch.cat([y, held[1]]).max()) + 1
    mixture = toy.mixture(name) if name in toy.MIXTURES else None
    return DataSet(name, x1[:limit], y[:limit], *held, classes, mixture)


def image_rows(name: str, split: str, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """The first `limit` images and labels of one split of an image set, which has no captions.

    `split` is "train" or "test": for the digits, "test" is the half that no generator sees, and
    their other splits may be named too. Raises ConfigError for another set, and what `load` raises.

    >>> x, y = image_rows("digits", "train", limit=3)
    >>> x.shape, y.shape
    (torch.Size([3, 1, 8, 8]), torch.Size([3]))
    """
    check_choice("dataset", name, each_image_set(0, 0, 0, 0))
    if name in mnist.NAMES:
        return mnist.load(split, name=name, limit=limit)
    if name in cifar10.NAMES:
        return cifar10.load(split, name=name, limit=limit)
    limit = limit if limit is None else check_count("limit", limit)
    x, y = digits.load("judge" if split == "test" else split)
    return x[:limit], y[:limit]


def each_image_set(of_digits: T, of_mnist: T, of_cifar10: T, of_half: T) -> dict[str, T]:
    """A value for each image set by name; sets of one shape share it, also those of half a side.

    >>> sides = each_image_set(8, 28, 32, 16)
    >>> sides["fashion_mnist"], sides["cifar10-16"]
    (28, 16)
    """
    colours = dict.fromkeys(cifar10.NAMES[:2], of_cifar10) | dict.fromkeys(
        cifar10.NAMES[2:], of_half
    )
    return {"digits": of_digits} | dict.fromkeys(mnist.NAMES, of_mnist) | colours


PIXELS = {"digits_pca": "digits"}


@functools.cache
def codec_for(name: str) -> PCA | words.Standard | None:
    """The codec of a data set whose networks see something else than its pixels; None for points
    and pixels. That of "digits_pca" is fitted on its training rows.
    """
    if name == "words":
        return words.Standard()
    return PCA(digits.load("train")[0]) if name == "digits_pca" else None


def _encoded(data: DataSet, name: str) -> DataSet:
    codec: Any = codec_for(name)
    return data._replace(
        name=name, x1=codec.encode(data.x1), held_x1=codec.encode(data.held_x1), codec=codec
    )
