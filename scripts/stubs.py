"""What editors and type checkers see of the optimizers: `python scripts/stubs.py` writes optimizers.pyi.

The constructors are made at run time from the options in configs.py; the stub spells them out. A test
compares the two, so run this after a change of an option.
"""

from __future__ import annotations

import inspect
import sys
import textwrap
from dataclasses import Field
from pathlib import Path
from typing import Any

from automagic_cameamp.aliases import settings
from automagic_cameamp.foreign import SYNONYMS
from automagic_cameamp.optimizers import OPTIMIZERS, create_improved_8bit_optimizer
from automagic_cameamp.validate import words_of

STUB = Path(__file__).resolve().parents[1] / "src" / "automagic_cameamp" / "optimizers.pyi"
WIDTH = 110
# Wider than what a config holds in the end: what its check understands.
WIDER = {"tuple[float, ...]": "Sequence[float]", "tuple[float, float]": "Sequence[float]", "Any": "object"}
WIDER |= {"list[int] | None": "Sequence[int] | None"}
OWN = {"eps": "float | Sequence[float]", "profile": "str | None"}
SHORT = {"": "Base", "8Bit": "EightBit"}
HEAD = """\
# Written by scripts/stubs.py from the options in configs.py; change those.
import inspect
from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypedDict

from torch import Tensor
from typing_extensions import Unpack

from .configs import {configs}
from .control import ContextualController
from .optimizer import CameAMPOptimizer

OPTIMIZERS: dict[str, type[CameAMPOptimizer]]

def signature(config_class: type[SharedConfig]) -> inspect.Signature: ...

class _Contextual(CameAMPOptimizer):
    @property
    def c_optim(self) -> ContextualController: ...
    def record_loss(self, loss: float | Tensor) -> None: ...
"""


def type_of(field: Field[Any]) -> str:
    """What may be given for an option."""
    if field.name in OWN:
        return OWN[field.name]
    if words := words_of(field.metadata["check"]):
        none = ", None" if "None" in str(field.type) or "none" in words else ""
        return f"Literal[{', '.join(map(repr, words))}{none}]"
    return WIDER.get(str(field.type), str(field.type))


def typed_dict(name: str, doc: str, entries: dict[str, str]) -> str:
    """A TypedDict whose keys may all be left out."""
    lines = "".join(f"    {key}: {value}\n" for key, value in entries.items())
    return f'class {name}(TypedDict, total=False):\n    """{doc}"""\n\n{lines}'


def function(name: str, shown: inspect.Signature, config: Any, single: str, result: str) -> str:
    """One signature, in lines of the right width."""
    fields = config.__dataclass_fields__
    parts, named = [], False
    for p in shown.parameters.values():
        if p.kind is p.KEYWORD_ONLY and not named:
            parts, named = [*parts, "*"], True
        if p.name in ("self", "params"):
            parts.append({"self": "self", "params": "params: Iterable[Any]"}[p.name])
        elif p.name == "techniques":
            parts.append(f"techniques: {single}Techniques | Sequence[str] | None = None")
        elif p.kind is p.VAR_KEYWORD:
            parts.append(f"**{p.name}: Unpack[{single}Single]")
        else:
            kind = type_of(fields.get(p.name) or fields[SYNONYMS[p.name]])
            parts.append(f"{p.name}: {kind} = {p.default!r}")
    pad = "    " if parts[0] == "self" else ""
    # A part is never torn: its spaces are put back after wrapping.
    whole = ", ".join(part.replace(" ", "~") for part in parts)
    body = textwrap.wrap(whole, WIDTH - 8, break_long_words=False)
    inside = "".join(f"{pad}    {line.replace('~', ' ')}\n" for line in body)
    return f"{pad}def {name}(\n{inside}{pad}) -> {result}: ...\n"


def text() -> str:
    """The stub."""
    parts, known = [], {}
    for name, cls in OPTIMIZERS.items():
        config: Any = cls.config_class
        every = settings(config)
        single = known.get(tuple(every))
        if single is None:
            short = name.removeprefix("Automagic_CameAMP").lstrip("_")
            single = known[tuple(every)] = SHORT.get(short, short)
            entries = {word: type_of(f) for word, f in every.items()}
            parts.append(typed_dict(f"{single}Techniques", "Words of ``techniques``.", entries))
            own = {f.name: type_of(f) for f in every.values()} | {"came_enabled": "bool"}
            parts.append(typed_dict(f"{single}Single", "The same as keywords of their own.", own))
        base = "_Contextual" if hasattr(cls, "c_optim") else "CameAMPOptimizer"
        init = function("__init__", inspect.signature(cls.__init__), config, single, "None")
        parts.append(f"class {name}({base}):\n    config: {config.__name__}\n{init}")
    maker = create_improved_8bit_optimizer
    last: Any = OPTIMIZERS["Automagic_CameAMP_Improved_8Bit"]
    single = known[tuple(settings(last.config_class))]
    parts.append(function(maker.__name__, inspect.signature(maker), last.config_class, single, last.__name__))
    configs = sorted({cls.config_class.__name__ for cls in OPTIMIZERS.values()} | {"SharedConfig"})
    listed = "(\n" + "".join(f"    {name},\n" for name in configs) + ")"
    return "\n".join([HEAD.format(configs=listed), *parts])


if __name__ == "__main__":
    STUB.write_text(text(), "utf-8")
    sys.stdout.write(f"{STUB.name}: {len(text().splitlines())} lines\n")
