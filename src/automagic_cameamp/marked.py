"""What ``mark_lora`` marked of a model, remembered by name.

Marks are attributes of parameters. ``copy.deepcopy``, ``fully_shard`` and ``load_state_dict(assign=True)``
put new parameters in their place and lose every attribute. The model keeps the names, also in its copies, and
an optimizer that is handed parameters of such a model puts the marks back.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

NAME = "_automagic_cameamp_marks"
_RECORDS: weakref.WeakSet[Marked] = weakref.WeakSet()


class Marked:
    """The marks of one model.

    Args:
        model: it holds this record, and is not held by it.
        names: attribute of a parameter -> names of the parameters that have it.
    """

    def __init__(self, model: nn.Module, names: Mapping[str, frozenset[str]]) -> None:
        self.model = weakref.ref(model)
        self.names = dict(names)
        _RECORDS.add(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Marked | None:
        model = memo.get(id(self.model()))  # the copy of the model, of which this is being copied as a part
        return Marked(model, self.names) if isinstance(model, nn.Module) else None

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, ()  # a pickled model needs nothing of this package to be loaded

    def restore(self, params: Mapping[int, Tensor]) -> None:
        """Put marks back on parameters of the model that are among these, by ``id``."""
        model = self.model()
        if model is None:
            return
        current = dict(model.named_parameters(remove_duplicate=False))
        for mark, names in self.names.items():
            for name in names & current.keys():
                p = params.get(id(current[name]))
                if p is not None and not hasattr(p, mark):
                    setattr(p, mark, True)


def remember(model: nn.Module, names: Mapping[str, Iterable[str]]) -> None:
    """Keep these names of a model's parameters, in the place of what was kept before."""
    model.__dict__[NAME] = Marked(model, {mark: frozenset(found) for mark, found in names.items()})


def forget(model: nn.Module) -> None:
    """Keep nothing of a model and its parts."""
    for module in model.modules():
        module.__dict__.pop(NAME, None)


def restore(params: Iterable[Tensor]) -> None:
    """Put back the marks that these parameters, or those in whose place they came, were given."""
    records = list(_RECORDS)
    if records:
        known = {id(p): p for p in params}
        for record in records:
            record.restore(known)
