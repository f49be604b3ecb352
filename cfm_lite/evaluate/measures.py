"""Samples measured against held-out data, and in the features of the data set's judge."""

import torch
from torch import Tensor

from cfm_lite import metrics
from cfm_lite.data import captions
from cfm_lite.data.datasets import PIXELS, DataSet
from cfm_lite.draws import keyed_generator
from cfm_lite.evaluate.judges import SETTINGS, Judge, assess, judge_for
from cfm_lite.evaluate.reader import reader_for, scores
from cfm_lite.theory import GaussianMixture

__all__ = ["judge_of", "measure", "reference_rows"]

# real rows that samples are compared with, or as many as there are samples; digits have fewer
COMPARED = 1000
# rows of each kind for precision and recall, which take all pairs
NEIGHBOURS = 2000
# training rows up to which every sample is compared with every one, pixel by pixel
ALL_PAIRS = 5000


def judge_of(name: str) -> Judge | None:
    """The judge of an image set; for latents, of their images; None for points.

    >>> print(judge_of("moons"))
    None
    """
    name = PIXELS.get(name, name)
    return judge_for(name) if name in SETTINGS else None


@torch.no_grad()
def measure(samples: Tensor, y: Tensor, data: DataSet, judge: Judge | None) -> dict[str, float]:
    """{metric: value} of samples (N, *dims) drawn for labels `y` (N,). Latents are decoded first.

    With a judge: accuracy in [0, 1]; frechet, the Fréchet distance in its features to held-out rows
    (1,000, or N if larger); frechet_real, that of N training rows; precision and recall of at most
    2,000 rows; and for sets as small as the digits nearest_ratio (below 0.9: memorised), which
    takes all pairs. For points: class accuracy under the exact posterior, sliced Wasserstein
    distance and MMD to held-out points. For pictures of captions `y` (N, L): the reader's scores.

    >>> from cfm_lite.data.datasets import dataset
    >>> data = dataset("two_classes", points=100)
    >>> sorted(measure(data.x1, data.y, data, judge=None))
    ['accuracy', 'mmd', 'sliced_wasserstein']
    """
    if data.codec is not None:
        samples = data.codec.decode(samples)
    if data.condition == "captions":
        return _measure_captioned(samples, y)
    if judge is None:
        return _measure_points(samples, y, data)
    data = data.images
    logits, fake = assess(judge, samples)
    real = assess(judge, reference_rows(len(samples), data, judge))[1]
    train_features = assess(judge, _some(data.x1, len(samples)))[1]  # the bias of N rows, too
    accuracy = metrics.accuracy(logits, y)
    values = {
        "accuracy": accuracy,
        "frechet": metrics.frechet(fake, real),
        "frechet_real": metrics.frechet(train_features, real),
    }
    if len(data.x1) <= ALL_PAIRS:
        values["nearest_ratio"] = metrics.nearest_ratio(samples, data.x1, data.held_x1)
    values["precision"], values["recall"] = metrics.precision_recall(
        _some(real, NEIGHBOURS), fake[:NEIGHBOURS]
    )
    return {name: float(value) for name, value in values.items()}


def _measure_captioned(samples: Tensor, y: Tensor) -> dict[str, float]:
    """Each part of the reader's score, on combinations that training shows and on held-out ones."""
    rows = scores(reader_for(), samples, captions.decode(y))
    values = {}
    for name in dict.fromkeys((row["metric"], row["prompts"]) for row in rows):
        own = [row for row in rows if (row["metric"], row["prompts"]) == name]
        hits, count = (
            sum(part) for part in zip(*((r["value"] * r["count"], r["count"]) for r in own))
        )
        values["_".join(name)] = hits / count
    return values


def reference_rows(n: int, data: DataSet, judge: Judge | None) -> Tensor:
    """The held-out rows that `n` samples are compared with: n points, or 1,000 images (n if
    larger).

    >>> from cfm_lite.data.datasets import dataset
    >>> reference_rows(50, dataset("moons", points=100), judge=None).shape
    torch.Size([50, 2])
    """
    held = data.images.held_x1
    return held[:n] if judge is None else _some(held, max(COMPARED, n))


def _some(x: Tensor, count: int) -> Tensor:
    """`count` rows of real `x`, evenly spaced, or all: MNIST's test rows change writers in the
    middle.

    Samples are cut to their first rows instead: their labels run through the classes, and a stride
    would drop some.
    """
    n = min(count, len(x))
    return x[
        torch.arange(n, device=x.device) * len(x) // n
    ]  # exactly n, which a whole stride would give only where n divides len(x)


def _measure_points(samples: Tensor, y: Tensor, data: DataSet) -> dict[str, float]:
    g = keyed_generator("cpu", 0, "projections")
    real = reference_rows(len(samples), data, None)
    n = len(real)
    values = {
        "sliced_wasserstein": metrics.sliced_wasserstein(samples[:n], real, generator=g),
        "mmd": metrics.mmd(samples[:n], real),
    }
    if data.mixture is not None:
        values["accuracy"] = _posterior_accuracy(samples, y, data.mixture)
    return {name: float(value) for name, value in values.items()}


def _posterior_accuracy(samples: Tensor, y: Tensor, mixture: GaussianMixture) -> Tensor:
    """The share of samples whose most likely class, under the exact mixture with its priors, is
    `y`.
    """
    ones = torch.ones_like(samples[:, 0])
    prior = torch.stack([mixture.weights[mixture.labels == c].sum().log() for c in mixture.classes])
    scores = torch.stack(
        [mixture.log_prob(samples, ones, torch.full_like(y, int(c))) for c in mixture.classes],
        dim=1,
    )
    return (
        torch.as_tensor(mixture.classes)[(scores + prior.to(samples.dtype)).argmax(1)]
        .eq(y)
        .float()
        .mean()
    )
