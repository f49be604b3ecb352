"""1,797 real handwritten digits of 8x8 pixels. They ship with scikit-learn, so nothing is
downloaded.

x1 = pixel / 8 - 1 in [-1, 1]. The rows are split once, class by class:

    train (899)   what generators learn from
    judge (898)   what they never see: it trains the judge, and samples are measured against it;
                  `judge_fit` trains the judge, `judge_test` (a quarter) measures its accuracy

The order is that of SHA-256("SEED:row"), so no library's random numbers can move a row to the other
side. Reference: Alpaydin and Kaynak 1998, "Optical recognition of handwritten digits" (UCI);
scikit-learn carries its test part.
"""

import hashlib
from functools import cache

import numpy as np
import torch
from torch import Tensor

from cfm_lite._internal.checks import check_choice
from cfm_lite._internal.lazy import random_kept

__all__ = ["SEED", "SPLITS", "indices", "load"]

SEED = 0
SPLITS = ("train", "judge", "judge_fit", "judge_test", "all")


@cache
def _raw() -> tuple[np.ndarray, np.ndarray]:
    with random_kept():
        from sklearn.datasets import load_digits  # importing scikit-learn takes a second

    pixels, labels = load_digits(return_X_y=True)
    # (1797, 8, 8) from 0 to 16, (1797,)
    return np.asarray(pixels).reshape(-1, 8, 8), np.asarray(labels)


def _shuffled_key(row: int) -> bytes:
    return hashlib.sha256(f"{SEED}:{row}".encode()).digest()


@cache
def _split() -> dict[str, np.ndarray]:
    labels = _raw()[1]
    rows = np.array(sorted(range(len(labels)), key=lambda row: (labels[row], _shuffled_key(row))))
    # rows go to the parts in turn, class by class: each part gets its share of each class, to
    # within two rows
    judge = rows[1::2]
    parts = {
        "train": rows[0::2],
        "judge": judge,
        "judge_fit": np.delete(judge, np.s_[::4]),
        "judge_test": judge[::4],
        "all": rows,
    }
    return {name: np.sort(part) for name, part in parts.items()}


def indices(split: str) -> Tensor:
    """The rows (n,) int64 of scikit-learn's file that belong to `split`, in increasing order;
    ConfigError for an unknown name.

    >>> len(indices("train")), len(indices("judge"))
    (899, 898)
    """
    check_choice("split", split, SPLITS)
    return torch.from_numpy(_split()[split].copy())


def load(split: str = "train") -> tuple[Tensor, Tensor]:
    """Images (n, 1, 8, 8) float32 in [-1, 1] and labels (n,) int64 in [0, 9] of one split.

    Raises ConfigError unless `split` is "train", "judge", "judge_fit", "judge_test" or "all".

    >>> x1, y = load("train")
    >>> x1.shape, x1.min().item(), x1.max().item()
    (torch.Size([899, 1, 8, 8]), -1.0, 1.0)
    """
    rows = indices(split).numpy()
    pixels, labels = _raw()
    images = torch.from_numpy(pixels[rows, None].astype(np.float32)).div_(8).sub_(1)  # (n, 1, 8, 8)
    return images, torch.from_numpy(labels[rows].astype(np.int64))
