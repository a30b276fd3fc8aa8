"""An optimizer of the family, as the tools around it see it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from .contract import Owner
from .model import Model


class Stepped(Protocol):
    """What of its steps an optimizer shows: whose hooks release its gradients, and who adds them up."""

    handle: object | None
    drops: int
    abandoned: int

    def hold(self, model: Model, p: Tensor) -> bool: ...
    def wait(self) -> None: ...


class Family(Owner, Protocol):
    """Any class of the family."""

    @property
    def model(self) -> Model: ...
    @property
    def stepper(self) -> Stepped: ...
    def step(self, closure: Callable[[], Any] | None = None, *, loss: Any = None) -> Any: ...
    def step_parameter(
        self, p: Tensor, group: dict[str, Any] | None = None, i: int | None = None
    ) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...
    def get_learning_rates(self) -> list[float]: ...
    def register_step_pre_hook(self, hook: Any) -> RemovableHandle: ...
    def register_step_post_hook(self, hook: Any) -> RemovableHandle: ...
    def register_load_state_dict_post_hook(self, hook: Any, prepend: bool = False) -> RemovableHandle: ...
