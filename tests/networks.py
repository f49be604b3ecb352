"""A network small enough for tests that need a model but are not about models."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from cfm_lite.models.text import clip_parts


class Tiny(nn.Module):
    """Two blocks of width 16 on (B, *dims) with labels 0..num_classes, the last one null."""

    def __init__(self, dim: int = 2, num_classes: int = 3, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.num_classes, self.depth, self.hidden_size = num_classes, 2, 16
            self.first = nn.Linear(dim + 1, 16)
            self.second = nn.Linear(16, 16)
            self.last = nn.Linear(16, dim)
            self.labels = nn.Embedding(num_classes + 1, 16)

    def forward_features(
        self, x: Tensor, t: Tensor, y: Tensor | None = None, blocks: Sequence[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        label = torch.full((len(x),), self.num_classes, device=x.device) if y is None else y
        h1 = torch.tanh(self.first(torch.cat([x.flatten(1), t[:, None]], 1)) + self.labels(label))
        h2 = h1 + torch.tanh(self.second(h1))
        return self.last(h2).reshape(x.shape), {k: h for k, h in ((1, h1), (2, h2)) if k in blocks}

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.forward_features(x, t, y)[0]


def same_parameters(a: nn.Module, b: nn.Module) -> bool:
    """True if every parameter and buffer is bit for bit the same."""
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))


def kept_bytes(model: nn.Module, given: Sequence[Tensor], again: bool = False) -> int:
    """The bytes that a forward pass keeps for the backward pass, without weights; with `again`
    under activation checkpointing.
    """
    sizes, model.checkpointing = {}, again

    def keep(z: Tensor) -> Tensor:
        sizes[z.untyped_storage().data_ptr()] = z.nbytes
        return z

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda z: z):
        _ = model(*given)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    return sum(size for place, size in sizes.items() if place not in weights)


def without_hub(monkeypatch) -> list[str]:
    """The addresses that are asked of the hub, which answers none and may be asked once only."""
    asked: list[str] = []

    def unreachable(url: str, *_: object, **how: object) -> None:
        asked.append(url)
        raise RuntimeError("no route\nto the hub")

    # the second is what others would ask with, for every file that there may be, and again
    for place in ("huggingface_hub", "huggingface_hub.file_download"):
        monkeypatch.setattr(f"{place}.get_hf_file_metadata", unreachable)
    return asked


def tiny_clip(folder: Path, length: int = 7, dim: int = 12, seed: int = 0) -> Path:
    """Write a tiny random CLIP, with a tokenizer of single letters, into `folder`."""
    from transformers.models.clip.configuration_clip import CLIPConfig

    modeling, tokens = clip_parts()
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    said = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    numbers = {word: number for number, word in enumerate(said)}
    tokenizer = tokens.CLIPTokenizer(numbers, [], model_max_length=length)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    tower = {"hidden_size": dim, "intermediate_size": 16, "num_hidden_layers": 2}
    tower |= {"num_attention_heads": 2}
    end = len(said) - 1
    text = tower | {"vocab_size": len(said), "max_position_embeddings": length}
    text |= {"eos_token_id": end, "bos_token_id": end - 1, "pad_token_id": end}
    config = CLIPConfig(
        text_config=text,
        vision_config=tower | {"image_size": 16, "patch_size": 8},
        projection_dim=6,
    )
    modeling.CLIPModel(config).save_pretrained(folder)
    return folder
