"""Tells the optimizers which parameters belong to a LoRA and which are embeddings.

ALLoRA's row gain and the low-rank terms act on a LoRA's parameters: those marked ``p._is_lora_layer``, those
named as adapters are in groups of ``named_parameters()``, and where neither is found, those whose shapes say
so (``state/pairs.py``). ``p._is_lora_layer = False`` says that one is none. ``stable_emb`` keeps 32-bit
state for parameters marked ``p._is_embedding``, and no stencil runs across their rows.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from . import marked

MARKS = LORA, EMBEDDING = "_is_lora_layer", "_is_embedding"
# Set by OneTrainer and other users of Advanced Optimizers on the parameters of their adapters.
FOREIGN = ("_is_lora_A", "_is_lora_B", "_is_dora_scale")
MAX_RANK = 128

# Parts of a parameter's dotted name -> kind. PEFT adds the adapter's name behind ("lora_A.default.weight").
KINDS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (kind, re.compile(pattern, re.IGNORECASE))
    for kind, pattern in (
        ("LoRA of an embedding", r"lora_embedding_[ab]"),
        ("DoRA magnitude", r"lora_magnitude_vector|dora_scale"),
        ("LoRA", r"lora_[abe]|lora_(up|down|mid)"),
        ("LoKr", r"lokr_(w[12](_[ab])?|t[12])"),
        ("LoHa", r"hada_(w[12]_[ab]|t[12])"),
    )
)
# diffusers' attention processors of old: to_q_lora.down.weight
OLD_DIFFUSERS = re.compile(r"(^|\.)\w+_lora\.(up|down)\.")
# One column per token, most of them without a gradient in a step: it behaves like an embedding.
EMBEDDING_PARTS = re.compile(r"lora_embedding_a|trainable_tokens_delta", re.IGNORECASE)
# The last module of an embedding's name: embed_tokens.weight, wte.weight, pos_embed; not time_embed.0.weight.
TABLE = re.compile(r"(\w*_)?emb(ed(ding)?s?)?(_(tokens|positions|in|out|table))?|wte|wpe", re.IGNORECASE)


@dataclass
class LoraMarks:
    """What was marked: parameter name -> kind, and the names of the embeddings."""

    lora: dict[str, str] = field(default_factory=dict)
    embeddings: list[str] = field(default_factory=list)
    elements: int = 0

    @property
    def counts(self) -> dict[str, int]:
        """Kind -> number of parameters, with "embedding" for those marked as embeddings."""
        found: dict[str, int] = {}
        for kind in self.lora.values():
            found[kind] = found.get(kind, 0) + 1
        return {**found, "embedding": len(self.embeddings)} if self.embeddings else found

    def __bool__(self) -> bool:
        return bool(self.lora or self.embeddings)

    def __str__(self) -> str:
        if not self:
            return "no LoRA parameters and no embeddings found"
        lines = [f"{len(self.lora)} LoRA parameters ({self.elements:,} elements)"]
        lines += [f"  {kind}: {count}" for kind, count in self.counts.items() if kind != "embedding"]
        for name in list(self.lora)[:3]:
            lines.append(f"    {name}")
        if len(self.lora) > 3:
            lines.append(f"    ... and {len(self.lora) - 3} more")
        lines.append(f"{len(self.embeddings)} embeddings{': ' if self.embeddings else ''}")
        lines[-1] += ", ".join(self.embeddings[:3]) + (", ..." if len(self.embeddings) > 3 else "")
        return "\n".join(lines)


def mark_lora(model: nn.Module, *, by_shape: bool = False, max_rank: int = MAX_RANK) -> LoraMarks:
    """Mark the LoRA parameters and the embeddings of a model; a second call changes nothing.

    Call it after the adapters were added and before the optimizer takes its first step. Marks that get lost
    before an optimizer is made (deepcopy, ``fully_shard``, ``load_state_dict(assign=True)``) are put back by
    it. Known by name are PEFT's LoRA, DoRA, LoHa and LoKr, kohya's and LyCORIS' (convolutions included), and
    diffusers' old attention processors; embeddings are known by their module.

    Args:
        model: any module: a PEFT model, a kohya network, a model with hand-written LoRA layers.
        by_shape: mark, of the trainable parameters that no name gave away, neighbours that multiply to a
            matrix of low rank as well. Small layers of an ordinary network can look like that too.
        max_rank: the largest rank that ``by_shape`` takes for a LoRA's.

    Returns:
        What carries a mark of this kind now; it prints as a summary.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model={type(model).__name__} is not allowed: pass a torch.nn.Module")
    if not isinstance(max_rank, int) or max_rank < 1:
        raise ValueError(f"max_rank={max_rank!r} is not allowed: it must be a whole number of at least 1")
    marks = LoraMarks()
    named = list(model.named_parameters())
    marks.lora = {name: kind for name, _ in named if (kind := kind_of(name)) is not None}
    if by_shape:
        rest = [(name, p) for name, p in named if name not in marks.lora and p.requires_grad]
        marks.lora.update(dict.fromkeys(_low_rank_pairs(rest, max_rank), "LoRA by shape"))
    marks.embeddings = list(_embedding_names(model, named))
    by_name = dict(named)
    for name in marks.lora:
        setattr(by_name[name], LORA, True)
        marks.elements += by_name[name].numel()
    for name in marks.embeddings:
        setattr(by_name[name], EMBEDDING, True)
    marked.remember(model, MARKS)
    return marks


def unmark_lora(model: nn.Module) -> LoraMarks:
    """Remove both marks from every parameter of a model, whoever set them; returns what was removed."""
    removed = LoraMarks()
    marked.forget(model)
    for name, p in model.named_parameters():
        if LORA in p.__dict__:
            removed.lora[name] = kind_of(name) or "LoRA by hand or by shape"
            removed.elements += p.numel()
            delattr(p, LORA)
        if EMBEDDING in p.__dict__:
            removed.embeddings.append(name)
            delattr(p, EMBEDDING)
    return removed


def mark_of(p: Tensor) -> bool | None:
    """Whether a mark says that a parameter is a LoRA's, or that it is none; None where no mark says."""
    marks = getattr(p, "__dict__", None)
    if not marks:
        return None
    own = marks.get(LORA)
    return bool(own) if own is not None else any(map(marks.get, FOREIGN)) or None


def is_embedding(p: Tensor) -> bool:
    """Whether a parameter is marked as an embedding."""
    return bool(getattr(p, EMBEDDING, False))


@functools.lru_cache(maxsize=1 << 16)
def table_of_name(name: str) -> int:
    """What a dotted name says of an embedding: 1: its rows are tokens, 2: its columns are, 0: it is none."""
    parts = name.split(".")
    if kind_of(name) is not None:
        return 2 if any(EMBEDDING_PARTS.fullmatch(part) for part in parts) else 0
    if "modules_to_save" in parts:  # PEFT's copy of a module: embed_tokens.modules_to_save.default.weight
        parts = parts[: parts.index("modules_to_save")]
    elif parts[-1] == "weight":
        parts = parts[:-1]
    return int(any(TABLE.fullmatch(part) for part in parts[-1:]) or "trainable_tokens_delta" in parts)


@functools.lru_cache(maxsize=1 << 16)
def kind_of(name: str) -> str | None:
    """What kind of adapter a parameter of this dotted name belongs to, None for none."""
    for part in name.split("."):
        for kind, pattern in KINDS:
            if pattern.fullmatch(part):
                return kind
    return "LoRA" if OLD_DIFFUSERS.search(name) else None


def _embedding_names(model: nn.Module, named: Iterable[tuple[str, Tensor]]) -> Iterator[str]:
    """Weights of embedding modules, and the parts of adapters that are indexed by token."""
    tables = {
        id(module.weight) for module in model.modules() if isinstance(module, (nn.Embedding, nn.EmbeddingBag))
    }
    for name, p in named:
        if id(p) in tables or any(EMBEDDING_PARTS.fullmatch(part) for part in name.split(".")):
            yield name


def _low_rank_pairs(named: Sequence[tuple[str, Tensor]], max_rank: int) -> Iterator[str]:
    """Names of neighbours (down, up) or (up, down): r x n and m x r, with r at most max_rank and below m, n.

    A convolution (o, i, kh, kw) counts as o x (i kh kw), so (1, 1) kernels are matrices.
    """
    i = 0
    while i + 1 < len(named):
        (name, p), (other_name, other) = named[i], named[i + 1]
        if _is_pair(p, other, max_rank) or _is_pair(other, p, max_rank):
            yield name
            yield other_name
            i += 2
        else:
            i += 1


def _is_pair(down: Tensor, up: Tensor, max_rank: int) -> bool:
    if min(down.dim(), up.dim()) < 2:
        return False
    rank, out = down.shape[0], up.shape[0]
    inputs, of_up = math.prod(down.shape[1:]), math.prod(up.shape[1:])
    return rank == of_up and rank <= max_rank and rank < min(out, inputs)
