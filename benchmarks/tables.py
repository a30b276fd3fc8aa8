"""Fill the marked regions of the documentation from the committed rows.

    python -m benchmarks.tables            # rewrite the pages
    python -m benchmarks.tables --check    # exit 1 if a page is not in step with the rows

A region is `<!-- rows: NAME -->`, a table, `<!-- end of rows -->`. Prose around it is written by hand.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks import (
    ablation,
    claims,
    fit_check,
    fit_recipes,
    guide_tables,
    host_cores,
    launches,
    long_runs,
    native_tables,
    rate_tables,
)
from benchmarks.common import RESULTS, ROOT, argument_parser
from benchmarks.rows import Rows

PAGES = ["docs/guide.md", "docs/guide.zh-TW.md", "docs/executors.md", "docs/recipes.md"]
PAGES += [f"docs/evidence/{name}.md" for name in ("claims", "ablation", "rate", "testing")]
REGION = re.compile(r"(<!-- rows: (?P<name>[\w ]+) -->\n).*?(<!-- end of rows -->)", re.S)

REGIONS: dict[str, Callable[[Rows, str], str]] = {
    "claims": lambda rows, language: claims.table(rows),
    "summary": lambda rows, language: claims.summary(rows),
    **{
        f"ablation {base}": partial(lambda rows, language, base: ablation.table(rows, base), base=base)
        for base in ablation.CHANGES
    },
    "state": guide_tables.state,
    "cards": guide_tables.cards,
    "budget": guide_tables.budget,
    "quality": guide_tables.quality,
    "larger": guide_tables.larger,
    "settings": guide_tables.settings,
    "time": guide_tables.time,
    "host cores": lambda rows, language: host_cores.table(rows),
    "fuzz": long_runs.fuzz,
    "soak": long_runs.soak,
    "mutation": long_runs.mutation,
    "commands": long_runs.commands,
    "launches": launches.table,
    "fit check": lambda rows, language: fit_check.table(fit_check.newest(rows.all("fit_check"))),
    **{
        f"recipe {name}": partial(lambda rows, language, name: fit_recipes.region(rows, name), name=name)
        for name in fit_recipes.RECIPES
    },
    "rate": lambda rows, language: rate_tables.summary(rows),
    "rate of classes": lambda rows, language: rate_tables.classes(rows),
    "rate of ranks": lambda rows, language: rate_tables.ranks(rows),
    "rate and techniques": lambda rows, language: rate_tables.ablation(rows),
    "native speed": native_tables.speed,
    "native thread": native_tables.thread,
    "native sets": native_tables.sets,
    "native without": native_tables.without,
    "native found": native_tables.found,
    "native threads": native_tables.threads,
    "native peers": native_tables.peers,
}


def language_of(page: Path) -> str:
    return "zh" if page.name.endswith(".zh-TW.md") else "en"


def filled(text: str, rows: Rows, language: str) -> str:
    """The page with every region made anew; an unknown region is an error."""

    def fill(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in REGIONS:
            raise SystemExit(f"region {name!r}: no such table; there are {', '.join(REGIONS)}")
        return f"{match[1]}\n{REGIONS[name](rows, language)}\n\n{match[3]}"

    return REGION.sub(fill, text)


def main(argv: list[str] | None = None) -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, say what would change")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the rows")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder that holds docs/")
    args = parser.parse_args(argv)
    rows, stale = Rows(args.results), []
    for name in PAGES:
        page = args.root / name
        old = page.read_text("utf-8")
        new = filled(old, rows, language_of(page))
        if new != old:
            stale.append(name)
            if not args.check:
                page.write_text(new, "utf-8")
    print(f"{'out of step' if args.check else 'rewritten'}: {', '.join(stale) or 'nothing'}")
    return 1 if args.check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
