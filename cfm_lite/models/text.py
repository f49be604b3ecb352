"""Captions as sequences of vectors: word vectors that are learnt with the network.

caption -> word numbers (L,), 0 where it has ended -> vectors (L, D) = table[word] + position
"""

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from cfm_lite._internal.checks import check_tensor, on_host
from cfm_lite.errors import ConfigError

__all__ = ["WordEmbedding"]


class WordEmbedding(nn.Module):
    """Learnt vectors (B, L, D) of word numbers y (B, L), 0 <= y < `vocab_size`; 0 is no word.

    >>> words = WordEmbedding(vocab_size=9, length=3, dim=4)
    >>> words(torch.tensor([[1, 8, 0]]), torch.zeros(1, 2)).shape
    torch.Size([1, 3, 4])
    """

    def __init__(self, vocab_size: int, length: int, dim: int) -> None:
        super().__init__()
        self.vocab_size, self.length = vocab_size, length
        self.table = nn.Embedding(vocab_size, dim)
        self.position = nn.Parameter(torch.zeros(length, dim))
        nn.init.normal_(self.position, std=0.02)

    def forward(
        self, y: Integer[Tensor, "batch length"], x: Float[Tensor, "batch *dims"]
    ) -> Float[Tensor, "batch length features"]:
        """Raises ConfigError unless `y` is a caption for each row of the batch `x`."""
        check_tensor(y=y)
        wanted = (len(x), self.length)
        if tuple(y.shape) != wanted or y.is_floating_point() or y.dtype == torch.bool:
            raise ConfigError(
                f"y has shape {tuple(y.shape)} and dtype {y.dtype}; this model takes captions as "
                f"word numbers, whole, {wanted}."
            )
        if on_host(y) and y.numel():
            low, high = int(y.min()), int(y.max())
            if low < 0 or high >= self.vocab_size:
                raise ConfigError(
                    f"y holds word numbers from {low} to {high}; they must be in [0, "
                    f"{self.vocab_size - 1}]."
                )
        return self.table(y) + self.position
