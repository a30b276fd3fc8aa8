"""The options that the kernels' tables depend on, compared with what they were when one was made."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter, itemgetter
from typing import Any

from torch import Tensor

from ... import configs
from ...state.model import Model
from . import table

_MARKS = attrgetter("__dict__")
FLAGS = ("_is_lora_layer", "_is_embedding")  # another library's change the number of attributes


class Asked:
    """What a program has asked for: all options but those that are read anew at every step.

    Args:
        model: whose options they are.
        params: its parameters, in order.
    """

    def __init__(self, model: Model, params: Sequence[Tensor]) -> None:
        groups = model.groups
        self._lengths = [len(group["params"]) for group in groups]
        self._config = dict(vars(model.config))
        # What is not here is looked at anew at every step, or is of no consequence for the arithmetic.
        options = configs.in_group(vars(model.config)).keys() & groups[0].keys()
        fixed = (options | {"base_beta1"}) - set(table.RENEWED)
        self._of = itemgetter(*sorted(fixed))
        self._options = list(map(self._of, groups))
        self._flags = _flags(params)

    def same(self, model: Model) -> bool:
        """Whether groups have as many parameters as they had, and all options say what they said."""
        groups = model.groups
        if [len(group["params"]) for group in groups] != self._lengths or vars(model.config) != self._config:
            return False
        try:
            return list(map(self._of, groups)) == self._options
        except KeyError:
            return False

    def marked(self, params: Sequence[Tensor]) -> bool:
        """Whether the marks of adapters and embeddings on these, all in order, are what they were."""
        return _flags(params) == self._flags


def _flags(params: Sequence[Tensor]) -> list[Any]:
    marks = list(map(_MARKS, params))
    return [list(map(len, marks)), [own.get(name) for own in marks if own for name in FLAGS]]
