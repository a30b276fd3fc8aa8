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
Names = Mapping[str, Mapping[str, Any]]


class Marked:
    """The marks of one model.

    Args:
        model: it holds this record, and is not held by it.
        names: attribute of a parameter -> name of each parameter that has it -> its value.
    """

    def __init__(self, model: nn.Module, names: Names) -> None:
        self.model = weakref.ref(model)
        self.names = {mark: dict(values) for mark, values in names.items()}
        _RECORDS.add(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Marked | None:
        model = memo.get(id(self.model()))  # the copy of the model, of which this is being copied as a part
        return Marked(model, self.names) if isinstance(model, nn.Module) else None

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, ()  # a pickled model needs nothing of this package to be loaded

    def current(self) -> dict[str, Tensor]:
        """The model's parameters as they are now, by name; none where it is gone."""
        model = self.model()
        return {} if model is None else dict(model.named_parameters(remove_duplicate=False))

    def restore(self) -> None:
        """Put marks back on parameters that have none of this kind, on all of the model at once."""
        current = self.current()
        for mark, values in self.names.items():
            for name, value in values.items():
                if name in current and not hasattr(current[name], mark):
                    setattr(current[name], mark, value)

    def drop(self, params: set[int]) -> None:
        """Forget the marks of these parameters, by ``id``."""
        gone = {name for name, p in self.current().items() if id(p) in params}
        for values in self.names.values():
            for name in gone & values.keys():
                del values[name]


def remember(model: nn.Module, marks: Iterable[str]) -> None:
    """Keep which parameters of a model have these attributes now, in the place of what was kept before."""
    named = list(model.named_parameters(remove_duplicate=False))
    names = {mark: {name: getattr(p, mark) for name, p in named if hasattr(p, mark)} for mark in marks}
    model.__dict__[NAME] = Marked(model, names)


def forget(model: nn.Module) -> None:
    """Keep nothing of the parameters of a model, whichever model it was kept for."""
    params = set(map(id, model.parameters()))
    for record in list(_RECORDS):
        record.drop(params)


def restore(params: Iterable[Tensor], marks: Iterable[str]) -> None:
    """Put back lost marks of the models that these parameters may be of.

    Nothing is looked for where every parameter has one: programs with an optimizer per parameter make
    thousands of groups.
    """
    records = list(_RECORDS)
    if records and not all(any(hasattr(p, mark) for mark in marks) for p in params):
        for record in records:
            record.restore()
