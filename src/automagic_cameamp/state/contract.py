"""What is expected of the neighbours: a controller, and the optimizer that owns parameters and state."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor

from ..storage import Policy

if TYPE_CHECKING:
    from ..configs import SharedConfig
    from .adapters import Adapters
    from .kept import Kept


class Controller(Protocol):
    """Something that watches the whole model and multiplies every rate of the next step."""

    memory: Tensor | None

    def begin(self, loss: Any) -> None: ...
    def share(self, device: torch.device) -> Tensor | None: ...
    def take(self, total: Tensor) -> None: ...
    def multiplier(self, like: Tensor) -> Tensor: ...
    def collect(self, signals: Any, key: tuple[int, int], rows: Tensor | None, count: int) -> None: ...
    def join(self, sketch: Tensor, square: float, bad: int) -> None: ...
    def finish(self, groups: list[dict[str, Any]]) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load(self, memory: Tensor | None) -> None: ...
    def is_memory(self, value: Any) -> bool: ...


class Owner(Protocol):
    """The optimizer, as ``Model`` needs it."""

    param_groups: list[dict[str, Any]]
    state: Any  # torch's: parameter -> its state
    defaults: dict[str, Any]

    def __setstate__(self, state: dict[str, Any]) -> None: ...

    config_class: ClassVar[type[SharedConfig]]
    recipe: ClassVar[ModuleType]
    policy: ClassVar[Callable[[Any, Tensor, Callable[[], str]], Policy]]
    kept: Kept
    adapters: Adapters

    @property
    def config(self) -> SharedConfig: ...
    @property
    def controller(self) -> Controller | None: ...
