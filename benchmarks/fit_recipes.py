"""The tables and command lines of docs/recipes.md: what `automagic fit` says for each.

    python -m benchmarks.fit_recipes
    python -m benchmarks.tables

Nothing that large is run or allocated here.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from automagic_cameamp import cli, fit
from automagic_cameamp.fit.commands import command, note
from benchmarks.common import RESULTS, append_row, argument_parser, environment
from benchmarks.rows import Rows

MEMORY, EIGHT = "Automagic_CameAMP8bit memory_optimized", "Automagic_CameAMP8bit"
BOTH = "release+offload"
# name -> (what is asked, optimizer and way of the command that is shown; '': the one that is recommended)
RECIPES = {
    "sdxl": ("--model sdxl --train full --gpu 12", MEMORY, "release"),
    "flux lora": (
        "--model flux --train lora --rank 16 --gpu 8 --base fp8 --swap 28 --resolution 768",
        "",
        "",
    ),
    "flux lora nf4": ("--model flux --rank 16 --gpu 8 --base nf4 --resolution 512", "", ""),
    "flux": ("--model flux --train full --gpu 24 --host 64 --swap 10", EIGHT, BOTH),
    "llm": ("--model llama3.1-8b --train full --gpu 24 --host 64 --tokens 2048", EIGHT, BOTH),
}


def answer_of(words: str) -> fit.Answer:
    """The answer to a command line of `automagic fit`."""
    options: dict[str, Any] = vars(cli.parser().parse_args(["fit", *words.split()]))
    names = {f.name for f in fields(fit.Question)}
    return fit.fit(**{key: value for key, value in options.items() if key in names})


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argument_parser(__doc__)
    parser.add_argument("--only", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--out", type=Path, default=RESULTS / "fit_recipes.jsonl")
    args = parser.parse_args(argv)
    rows = []
    for name in args.only:
        words, optimizer, way = RECIPES[name]
        answer = answer_of(words)
        shown = next(
            (r for r in answer.rows if (r.optimizer, r.way) == (optimizer, way)), answer.recommended()
        )
        row = {"bench": "fit_recipes", "recipe": name, "words": words, "table": fit.markdown(answer.best())}
        row |= {"shown": None if shown is None else f"`{shown.optimizer}`, {shown.way}"}
        row |= {"command": "" if shown is None else command(answer, shown)}
        row |= {"note": "" if shown is None else note(answer, shown), "assumptions": answer.assumptions()}
        rows.append({**row, **environment()})
        append_row(args.out, rows[-1])
        print(f"{words}\n{row['table']}\n{row['command']}\n", flush=True)
    return rows


def region(rows: Rows, name: str) -> str:
    """What stands on the page: the table, and the lines that run one of its rows."""
    row = next(r for r in reversed(rows.all("fit_recipes")) if r["recipe"] == name)
    after = f"\n\n{row['note']}" if row["note"] else ""
    return f"{row['table']}\n\n{row['shown']}:\n\n```text\n{row['command']}\n```{after}"


if __name__ == "__main__":
    main()
