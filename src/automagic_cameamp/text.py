"""Values that arrive as text, from command lines, YAML and the boxes of a GUI: read as what they say."""

from __future__ import annotations

import ast
from typing import Any

WORDS = {"true": True, "false": False, "none": None, "null": None}
WORDS |= {sign + word: float(sign + word) for sign in ("", "+", "-") for word in ("inf", "infinity")}


def read(value: Any) -> Any:
    """What a text says: a number, tuple, boolean, None or quoted text; any other value, or word, as it is.

    YAML 1.1 takes ``1e-4`` for a text, so the items of lists are read as well.

    Args:
        value: anything; only texts, and lists and tuples with texts in them, change.

    Returns:
        ``'200'`` -> 200, ``'1e-4'`` -> 0.0001, ``'true'`` -> True, ``'0.9,0.99'`` -> (0.9, 0.99),
        ``"'balanced'"`` and ``'balanced'`` -> 'balanced', ``['1e-30', 1]`` -> [1e-30, 1].

    Example:
        >>> read("0.9,0.99"), read("true"), read("balanced")
        ((0.9, 0.99), True, 'balanced')
    """
    if isinstance(value, (list, tuple)) and any(isinstance(item, str) for item in value):
        return type(value)(map(read, value)) if type(value) in (list, tuple) else value
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def split_args(text: str) -> list[str]:
    """The ``key=value`` words of one text, divided by commas or blanks; a comma inside a value stays in it.

    Args:
        text: as in Transformers' ``optim_args`` or SimpleTuner's ``optimizer_config``.

    Example:
        >>> split_args("warmup_steps=200, betas=0.9,0.99,profile='balanced'")
        ['warmup_steps=200', 'betas=0.9,0.99', "profile='balanced'"]
    """
    words: list[str] = []
    for piece in text.split(","):
        for i, word in enumerate(piece.split()):
            if "=" in word or not words:
                words.append(word)
            else:  # the rest of a value: the comma before it, or a blank in it, was part of it
                words[-1] += ("," if i == 0 else " ") + word
    return words
