"""docs/techniques.md from the docstrings of techniques/: `python scripts/pages.py` writes the marked parts.

A mark is `<!-- functions: agr -->`, `<!-- words -->` or `<!-- dead -->`; its part ends with `<!-- end -->`.
"""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

from automagic_cameamp import OPTIMIZERS, aliases
from automagic_cameamp import techniques as T

PAGE = Path(__file__).resolve().parents[1] / "docs" / "techniques.md"
WIDTH = 118
HEADINGS = "Args|Returns|Yields|Raises|Source|Deviations|Options|Measured|Example"
CONFIGS: dict[str, Any] = {name: cls.config_class for name, cls in OPTIMIZERS.items()}


def sections(name: str) -> dict[str, str]:
    """The parts of a docstring by heading, the formula under "Formula"."""
    doc = inspect.getdoc(getattr(T, name)) or ""
    parts = re.split(rf"^({HEADINGS}):", doc, flags=re.M)
    found = dict(zip(parts[1::2], (part.strip() for part in parts[2::2]), strict=True))
    found["What"] = parts[0].partition("\n\n")[0]
    if math := re.search(r"\.\. math:: (.*?)(?=\n\n|\Z)", parts[0], re.S):
        found["Formula"] = textwrap.dedent(" " * 10 + math[1])
    return found


def default_of(option: str) -> str:
    """`name=default`; every class has the same."""
    values = {repr(aliases.default_of(c.__dataclass_fields__[option])) for c in CONFIGS.values()
              if option in c.__dataclass_fields__}  # fmt: skip
    [value] = values
    return f"`{option}={value}`"


def bullet(text: str) -> str:
    """A list item in markdown: docstrings write ``x`` and :math:`x`."""
    text = re.sub(r":math:`([^`]*)`", r"$\1$", " ".join(text.split())).replace("``", "`")
    return textwrap.fill(text, WIDTH, initial_indent="* ", subsequent_indent="  ", break_on_hyphens=False,
                         break_long_words=False)  # fmt: skip


def functions(names: str) -> str:
    """What the docstrings of some functions say, as one entry."""
    listed = [f"`{name}`" + (f" ({getattr(T, name).locality.value})" if hasattr(getattr(T, name), "locality")
              else "") for name in names.split()]  # fmt: skip
    every = {name: sections(name) for name in names.split()}
    first = bullet(next(iter(every.values()))["What"])[2:].replace("\n  ", "\n")
    lines = [first, "", bullet("Functions: " + ", ".join(listed))]
    for heading in ("Formula", "Source", "Deviations", "Options", "Measured"):
        having = [name for name, found in every.items() if heading in found]
        for name in having:
            said, of = every[name][heading], f" (`{name}`)" if len(every) > 1 else ""
            if heading == "Formula":
                body = "\n".join("  " + line.strip() for line in said.splitlines())
                lines.append(f"* Formula{of}:\n\n  ```math\n{body}\n  ```\n")
            elif heading == "Options":
                options, _, rest = said.partition(".")
                defaults = ", ".join(map(default_of, re.findall(r"\w+", options)))
                lines.append(bullet(f"Default: {defaults}.{rest and ' ' + rest.strip()}"))
            else:
                lines.append(bullet(f"{heading}{of if len(having) > 1 else ''}: {said}"))
    return "\n".join(lines)


def words(_: str) -> str:
    """The words of ``techniques``."""
    rows = ["| word | default | what | in |", "| --- | --- | --- | --- |"]
    every: dict[str, Any] = {}
    for config in CONFIGS.values():
        every |= aliases.settings(config)
    for word, f in every.items():
        classes = [name for name, config in CONFIGS.items() if word in aliases.settings(config)]
        endings = [f"`{c.split('CameAMP')[1]}`" if c[-1] != "P" else "base" for c in classes]
        short = "all" if len(classes) == len(CONFIGS) else ", ".join(endings)
        own = "" if word == f.name else f"; alone: `{f.name}`"
        rows.append(f"| `{word}` | `{aliases.default_of(f)!r}` | {f.metadata['doc']}{own} | {short} |")
    return "\n".join(rows)


def dead(_: str) -> str:
    """Names without effect, with the reason that is said."""
    return "\n".join(bullet(f"`{name}`: {found.reason}.") for name, found in aliases.DEAD.items())


MAKERS = {"functions": functions, "words": words, "dead": dead}


def text() -> str:
    """The page, its marked parts made anew."""

    def made(match: re.Match[str]) -> str:
        body = MAKERS[match[1]](match[2].strip(": "))
        return f"<!-- {match[1]}{match[2]} -->\n{body.rstrip()}\n<!-- end -->"

    marks = "|".join(MAKERS)
    return re.sub(rf"<!-- ({marks})(.*?) -->\n.*?<!-- end -->", made, PAGE.read_text("utf-8"), flags=re.S)


if __name__ == "__main__":
    PAGE.write_text(text(), "utf-8")
    sys.stdout.write(f"{PAGE.name}: {len(text().splitlines())} lines\n")
