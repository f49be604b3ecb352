"""Captions as sequences of vectors: learnt with the network, or by a frozen CLIP.

    words:  caption -> numbers (L,), 0 where it has ended
            -> vectors (L, D) = table[word] + position,
            then, `phrases` times, each vector += GELU(convolution over it and its two neighbours)
    CLIP:   caption -> its own tokens (77,) -> the last hidden states (77, D)

Word numbers are what `data.captions.encode` gives, and the network holds the table. CLIP needs the
extra `[text]`; its features are what the network takes as a condition.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from textwrap import shorten
from typing import Any
from unicodedata import normalize

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor, nn

from cfm_lite._internal import hub
from cfm_lite._internal.checks import (
    as_labels,
    full_precision,
    in_one_line,
    is_whole,
    listed,
    on_host,
    seen,
    warn_once,
)
from cfm_lite._internal.files import fingerprint
from cfm_lite._internal.lazy import optional
from cfm_lite._internal.networks import made_in_float32
from cfm_lite.errors import CFMError, CheckpointError, ConfigError

__all__ = ["CLIP", "ClipText", "WordEmbedding", "check_texts", "clip_parts", "open_clip"]

CLIP = "openai/clip-vit-large-patch14"


class WordEmbedding(nn.Module):
    """Learnt vectors (B, L, D) of word numbers y (B, L), 0 <= y < `vocab_size`; 0 means no word.

    With `phrases` a vector also tells of that many words on each side: "red" beside "seven" is
    another vector than "red" beside "star".

    >>> words = WordEmbedding(vocab_size=9, length=3, dim=4)
    >>> words(torch.tensor([[1, 8, 0]]), torch.zeros(1, 2)).shape
    torch.Size([1, 3, 4])
    """

    def __init__(self, vocab_size: int, length: int, dim: int, phrases: int = 0) -> None:
        super().__init__()
        self.vocab_size, self.length = vocab_size, length
        self.table = nn.Embedding(vocab_size, dim)
        self.position = nn.Parameter(torch.empty(length, dim))
        self.phrases = nn.ModuleList(nn.Conv1d(dim, dim, 3, padding=1) for _ in range(phrases))
        self.reset()

    def reset(self) -> None:
        """Draw the initial vectors. They have the size of normalised features: small ones would
        drown in what the first blocks add to every token alike, and no patch could tell words
        apart.
        """
        nn.init.normal_(self.table.weight)
        nn.init.normal_(self.position)

    def forward(
        self, y: Integer[Tensor, "batch length"], x: Float[Tensor, "batch *dims"]
    ) -> Float[Tensor, "batch length features"]:
        """Raises ConfigError unless `y` is a caption for each row of the batch `x`."""
        y = self.numbers(y, len(x))
        said = self.table(y) + self.position
        for phrase in self.phrases:
            said = said + F.gelu(phrase(F.layer_norm(said, said.shape[-1:]).mT).mT)
        return said

    def numbers(self, y: Tensor, rows: int | None = None) -> Tensor:
        """`y` as int64; ConfigError unless it is word numbers, of so many `rows` (None: any)."""
        y = as_labels(y)
        given = isinstance(y, Tensor)
        wanted = given and (len(y) if rows is None and y.dim() else rows, self.length)
        if not given or tuple(y.shape) != wanted or not is_whole(y):
            raise ConfigError(
                f"y has {seen(y)}{f' and dtype {y.dtype}' if given else ''}; this model takes a "
                "tensor of captions as word numbers, whole, "
                f"({'B' if rows is None else rows}, {self.length})."
            )
        if on_host(y) and y.numel():
            low, high = int(y.min()), int(y.max())
            if low < 0 or high >= self.vocab_size:
                raise ConfigError(
                    f"y holds word numbers from {low} to {high}; they must be in [0, "
                    f"{self.vocab_size - 1}]."
                )
        return y


class ClipText(nn.Module):
    """CLIP's text tower, frozen: captions -> features (B, 77, 768), as MS-COCO's MMDiT was trained.

    Each caption is padded to `length` tokens, no mask hides the padding, and the last hidden state
    of every token is kept. A longer caption is cut. The call gives what the network takes as `y`;
    `null()` is what its buffer `null_context` holds.

    Args:
        place: a name on the Hugging Face hub, or a folder with config, weights and tokenizer.

    Raises:
        ConfigError: transformers is not installed, or captions that are not a list of texts.
        CheckpointError: there is no such encoder, or it is damaged or not whole.

    Reference: baofff/U-ViT, libs/clip.py: `openai/clip-vit-large-patch14`.
    """

    def __init__(self, place: str | os.PathLike[str] = CLIP) -> None:
        super().__init__()
        # whole: a run is sampled from another folder than it was trained in
        self.place = hub.folder_of(place) or os.fspath(place)
        self.tokenizer, self.tower = open_clip(self.place, "CLIPTextModel")
        self.eval()
        self.dim: int = self.tower.config.hidden_size
        self.length: int = self.tower.config.max_position_embeddings

    def train(self, mode: bool = True) -> "ClipText":
        """It stays in eval mode."""
        return super().train(False)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of its weights: features of another encoder are refused by it."""
        return fingerprint(self.tower.state_dict())

    def null(self) -> Float[Tensor, "length features"]:
        """The features of the empty caption."""
        return self([""])[0]

    @torch.no_grad()
    @full_precision()
    def forward(self, captions: Sequence[str]) -> Float[Tensor, "batch length features"]:
        """The features of captions, on the device of the weights, in float32 also under autocast:
        a sampler reads its negative prompt inside of one.

        Raises ConfigError for what is no list of texts.
        """
        told = check_texts(captions)
        tokens = self.tokenizer(
            told,
            truncation=True,
            max_length=self.length,
            padding="max_length",
            return_tensors="pt",
        )["input_ids"]
        return self.tower(tokens.to(self.tower.device)).last_hidden_state


def note_cut(encoder: ClipText, captions: Sequence[str]) -> None:
    """Warn once of the captions whose end the encoder does not read: how many, and the first."""
    read = encoder.length - encoder.tokenizer.num_special_tokens_to_add()
    # a token holds a byte at least, so most captions need not be split to be counted
    long = [said for said in captions if len(normalize("NFC", said).lower().encode()) > read]
    how = {"add_special_tokens": False, "verbose": False}
    counts = [len(tokens) for tokens in encoder.tokenizer([*long, ""], **how)["input_ids"]]
    cut = [(said, count) for said, count in zip(long, counts) if count > read]
    if cut:
        some = listed(
            f"{shorten(said, 60, placeholder='...')!r} has {count}" for said, count in cut
        )
        several = f"{len(cut):,} of {len(captions):,} captions" if captions[1:] else "the caption"
        warn_once(
            f"{several} {'are' if cut[1:] else 'is'} longer than the {read} tokens that the text "
            f"encoder reads, so the end is cut: {some}. Shorter ones are read whole."
        )


def clip_parts() -> tuple[Any, Any]:
    """transformers' modules of CLIP's networks and of its tokenizer; ConfigError without them.

    >>> [part.__name__.split("_")[0].split(".")[-1] for part in clip_parts()]
    ['modeling', 'tokenization']
    """
    modeling, tokens = (
        optional(f"transformers.models.clip.{part}_clip", "text")
        for part in ("modeling", "tokenization")
    )
    return modeling, tokens


@made_in_float32()
def open_clip(place: str, network: str) -> tuple[Any, Any]:
    """The tokenizer and the frozen `network`, a class of transformers, that lie at `place`.

    What the hub gives is downloaded once. Raises ConfigError without transformers, and
    CheckpointError if nothing lies there, or what lies there is damaged or not whole.
    """
    modeling, tokens = clip_parts()
    folder = hub.folder_of(place)
    place, refused = folder or place, "" if folder else hub.refusal(place, "text")
    how = {"local_files_only": bool(refused)}
    try:
        with _quietly():
            tokenizer = tokens.CLIPTokenizer.from_pretrained(place, use_safetensors=True, **how)
            kind = getattr(modeling, network)
            # weights of another shape are told below, with their names
            opened, about = kind.from_pretrained(
                place,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **how,
            )
    except (CFMError, MemoryError):
        raise
    except Exception as error:  # a damaged file fails in a dozen ways
        where = " on this machine, and the hub does not give it" if refused else ""
        none = refused or isinstance(error, OSError)
        seen = f"there is no CLIP {place!r}{where}" if none else f"the CLIP {place!r} is damaged"
        raise CheckpointError(
            f"{seen} ({(refused or in_one_line(error)).rstrip('.')}). {_remedy(network)}"
        ) from None
    flaw = hub.flaw(opened, about, place, "model.safetensors", "text")
    if not flaw and len(tokenizer) <= len(tokenizer.all_special_tokens):
        flaw = "has no tokenizer, so it knows no words"  # transformers makes an empty one
    if flaw:
        raise CheckpointError(f"the CLIP {place!r} {flaw}. {_remedy(network)}")
    return tokenizer, opened.requires_grad_(False).eval()


def _remedy(network: str) -> str:
    flag = "--text" if network == "CLIPTextModel" else "--clip"
    return (
        f"Give with {flag} a folder with config.json, model.safetensors and the tokenizer, or go "
        f"online for {CLIP}."
    )


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """transformers says nothing: it would list the weights of the tower that is not opened."""
    logs = optional("transformers.utils.logging", "text")
    level, bars = logs.get_verbosity(), logs.is_progress_bar_enabled()
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    try:
        yield
    finally:
        logs.set_verbosity(level)
        if bars:
            logs.enable_progress_bar()


def check_texts(captions: Sequence[str]) -> list[str]:
    """The captions as a list. Raises ConfigError unless they are a list of texts.

    >>> check_texts(("a dog", ""))
    ['a dog', '']
    """
    told: list[Any] = list(captions) if isinstance(captions, Sequence) else [captions]
    if isinstance(captions, str) or not all(isinstance(caption, str) for caption in told):
        raise ConfigError(f"captions is {captions!r:.60}; it must be a list of texts.")
    return told
