"""What share of a whole training step is the optimizer's? On the demo's task, with its real model.

    python -m benchmarks.training_step --rounds 6

All candidates train their own copy of the demo's LoRA and take turns, step by step; the forward and
backward pass and `step()` are timed apart. A row has the medians of both. The phase is late: every
optimizer gets `warmup_steps=0`.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch

from benchmarks.common import (
    CANDIDATE_HELP,
    RESULTS,
    append_row,
    argument_parser,
    build,
    environment,
    is_ours,
    label,
    markdown,
    median,
    parse_candidate,
)

OPTIMIZERS = [
    "adamw",
    "Automagic_CameAMP",
    "Automagic_CameAMP8bit",
    "Automagic_CameAMP_Improved",
    "Automagic_CameAMP_8Bit",
    "Automagic_CameAMP_Improved_8Bit",
]
UNTIMED = 2  # first steps: state is made, memory is touched


def table(rows: list[dict]) -> str:
    body = []
    for r in rows:
        share = 100 * r["step_ms"] / (r["step_ms"] + r["model_ms"])
        body.append(
            [label(r["optimizer"], r["options"]), r["threads"], r["model_ms"], r["step_ms"], f"{share:.1f}%"]
        )
    return markdown(["optimizer", "threads", "model, ms", "step, ms", "share of the step"], body)


def main(argv: list[str] | None = None) -> list[dict]:
    from automagic_trainer.tasks import cat_lora

    parser = argument_parser(__doc__)
    parser.add_argument("--optimizers", nargs="+", default=OPTIMIZERS, help=CANDIDATE_HELP)
    parser.add_argument("--rounds", type=int, default=6, help="timed steps of each")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "training_step.jsonl")
    parser.add_argument("--quick", action="store_true", help="one step of two optimizers: a smoke test")
    args = parser.parse_args(argv)
    if args.quick:
        args.rounds, args.optimizers = 1, args.optimizers[:2]
    torch.set_num_threads(args.threads)
    runs = []
    for text in args.optimizers:
        name, options = parse_candidate(text)
        task = cat_lora(0, "cpu")
        late = {"warmup_steps": 0, "max_lr": 1.0} if is_ours(name) else {}
        optimizer = build(name, [p for p in task.parameters()], lr=4e-3, **{**late, **options})
        runs.append((name, options, task, optimizer, [], []))
    for step in range(UNTIMED + args.rounds):
        for _, _, task, optimizer, model_times, step_times in runs:
            optimizer.zero_grad()
            start = time.perf_counter()
            task.loss(step).backward()
            middle = time.perf_counter()
            optimizer.step()
            end = time.perf_counter()
            if step >= UNTIMED:
                model_times.append(1e3 * (middle - start))
                step_times.append(1e3 * (end - middle))
    rows = []
    for name, options, _, _, model_times, step_times in runs:
        row = {"bench": "training_step", "task": "cat_lora", "optimizer": name, "options": options}
        row |= {"model_ms": median(model_times), "step_ms": median(step_times), "rounds": args.rounds}
        rows.append({**row, **environment()})
        append_row(args.out, rows[-1])
    print(table(rows))
    return rows


if __name__ == "__main__":
    main()
