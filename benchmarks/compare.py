"""Quality: held-out loss of several optimizers, each at its best learning rate of a grid.

    python -m benchmarks.compare --jobs 16
    python -m benchmarks.compare --tasks charlm-tiny --ablate use_tam=false final_clip=inf --jobs 2

Every (task, optimizer, lr, seed) is one run in its own process with one thread; rows are appended
as runs finish, and a second start skips the runs that are already there. The best lr is the one
with the smallest mean over seeds. If it lies at the edge of the grid, the grid grows on that side.
"""

from __future__ import annotations

import ast
import json
import math
import multiprocessing
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import (
    CANDIDATE_HELP,
    RESULTS,
    ROOT,
    append_row,
    argument_parser,
    available,
    build,
    environment,
    is_ours,
    label,
    parse_candidate,
    parse_options,
    read_rows,
)
from benchmarks.quality import ablation_table, best_lr, table

TASKS = ["cat_lora", "charlm-small", "charlm-tiny"]  # the longest first, so that no long run starts last
OPTIMIZERS = ["adamw", "Automagic_CameAMP", "Automagic_CameAMP8bit"]
GRID = [5e-4, 1e-3, 2e-3, 4e-3]
WARMUP_FRACTION = 1 / 3  # of the run; the class default, 500 steps, is longer than these runs
STEPS = {"cat_lora": 150, "unet-full": 150}  # of tasks that do not say
# The absolute caps of the rate must not cut the grid of learning rates short; the mask has its own limits.
OURS_BASE: dict[str, Any] = {"min_lr": 0.0, "max_lr": 1.0}

# What decides the loss of a run of ours. Executors do not: the tests hold them to one result.
SOLVED = ("classes", "classes-near", "policy", "head-first")  # of solved_tasks.py
ADAPTED = ("classes-zero", "control", "inversion")  # of adapted_tasks.py
MATHEMATICS = [
    "techniques",
    "recipes",
    "storage",
    "control",
    "state/limit.py",
    "schedule.py",
    "configs.py",
    "types.py",
    "profiles.py",
]

WARMUP_LR = 0.1  # fraction of the run over which the 'warmup' schedules raise the rate


def constant(steps: int, step: int) -> float:
    return 1.0


def cosine(steps: int, step: int) -> float:
    return 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / steps))


def warmup(steps: int, step: int) -> float:
    return min(1.0, (step + 1) / max(1, round(WARMUP_LR * steps)))


def warmup_cosine(steps: int, step: int) -> float:
    return warmup(steps, step) * cosine(steps, step)


SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "constant": constant,
    "cosine": cosine,
    "warmup": warmup,
    "warmup-cosine": warmup_cosine,
}


@dataclass(frozen=True)
class Job:
    task: str
    optimizer: str
    options: dict[str, Any] = field(hash=False)
    lr: float | None = 1e-3  # None: the optimizer's own default
    seed: int = 0
    steps: int = 0  # 0: the task's own
    schedule: str = "constant"
    device: str = "cpu"
    text_cache: str | None = None  # of cat_lora, where the text encoder is not installed
    evaluations: int = 0  # of the held-out loss during the run, evenly spread; for learning curves
    plain: bool = False  # our optimizers get nothing but what the job names

    @classmethod
    def parse(cls, task: str, text: str, *rest: Any) -> Job:
        name, options = parse_candidate(text)
        return cls(task, name, options, *rest)

    @property
    def key(self) -> tuple:
        """What makes two runs the same run. The device type is not part of it, the code is."""
        row = {**asdict(self), "key_steps": self.steps, "source": source_digest(self.task, self.optimizer)}
        return row_key(row)


def make_task(job: Job):
    from benchmarks.make import make  # here: it imports what only some of the tasks need

    return make(job.task, job.seed, job.device, job.text_cache)


def ours_defaults(job: Job, steps: int) -> dict[str, Any]:
    """Options that our optimizers get unless the job says otherwise."""
    full = {"full_finetune": True} if job.task.startswith("charlm") else {}  # ALLoRA is for LoRA matrices
    return {**OURS_BASE, **full, "warmup_steps": round(steps * WARMUP_FRACTION)}


@lru_cache
def source_digest(task: str, optimizer: str) -> str:
    """Digest of the code that a run's result depends on, so rows of older code are never reused."""
    task = task.partition("@")[0]
    files = [ROOT / "benchmarks" / "charlm.py"] if task.startswith(("charlm", "lm-")) else []
    if not task.startswith(("charlm", "cat_lora")):
        files.append(ROOT / "benchmarks" / "auto_tasks.py")
    if task in SOLVED:
        files.append(ROOT / "benchmarks" / "solved_tasks.py")
    if task in ADAPTED:
        files += [ROOT / "benchmarks" / name for name in ("adapted_tasks.py", "solved_tasks.py")]
    if "-alpha" in task:
        files.append(ROOT / "benchmarks" / "auto_ranks.py")
    if is_ours(optimizer):
        package = ROOT / "src" / "automagic_cameamp"
        ours = [package / name for name in MATHEMATICS]
        files += sorted(f for path in ours for f in (path.rglob("*.py") if path.is_dir() else [path]))
    if task in ("cat_lora", "unet-full", "inversion"):
        files += sorted((ROOT / "trainer" / "src" / "automagic_trainer").rglob("*.py"))
    return sha256("".join(_statements(path) for path in files).encode()).hexdigest()[:12]


def _statements(path: Path) -> str:
    """What a file does: its code without comments and docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if (
            isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
            and ast.get_docstring(node) is not None
        ):
            node.body = node.body[1:]
    return ast.dump(tree)


def run_job(job: Job) -> dict[str, Any]:
    """Train once and evaluate on held-out data. A run that leaves the finite numbers gets loss inf."""
    torch.set_num_threads(1)
    task = make_task(job)
    steps = job.steps or getattr(task, "steps", None) or STEPS[job.task.partition("@")[0]]
    options = dict(job.options)
    if is_ours(job.optimizer) and not job.plain:
        options = {**ours_defaults(job, steps), **options}
    given = options if job.lr is None else {"lr": job.lr, **options}
    optimizer = build(job.optimizer, [p for p in task.parameters() if p.requires_grad], **given)
    if is_schedule_free(optimizer):
        optimizer.train()  # type: ignore[attr-defined]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(SCHEDULES[job.schedule], steps))
    curve, held_out_curve, rates, spent, start = [], [], [], 0.0, time.perf_counter()
    evaluate_at = {round(steps * i / job.evaluations) for i in range(1, job.evaluations)}
    loss_value = math.nan
    for step in range(steps):
        loss = task.loss(step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % max(1, steps // 20) == 0 or step == steps - 1:
            loss_value = float(loss.detach())
            curve.append([step, round(loss_value, 5)])
            group = optimizer.param_groups[0]  # what trainers log of optimizers that find the rate
            rates.append([step, float(group["lr"]) * float(group.get("d", 1.0))])
            if not math.isfinite(loss_value):
                break
        if step + 1 in evaluate_at:
            paused = time.perf_counter()
            held_out_curve.append([step + 1, evaluated(task, optimizer)])
            spent += time.perf_counter() - paused
    seconds = time.perf_counter() - start - spent
    final = evaluated(task, optimizer) if math.isfinite(loss_value) else math.inf
    row = {"bench": "quality", **asdict(job), "steps": steps, "full_options": options}
    row["held_out"] = final if math.isfinite(final) else math.inf
    row |= {"train_curve": curve, "seconds": round(seconds, 2)}
    if job.plain:
        row["rate_curve"] = rates
    if job.evaluations:
        row["held_out_curve"] = [*held_out_curve, [steps, row["held_out"]]]
    if hasattr(task, "accuracy"):
        row["held_out_accuracy"] = task.accuracy()
    if hasattr(optimizer, "get_avg_learning_rate"):
        row["mean_applied_lr"] = float(optimizer.get_avg_learning_rate())
    if hasattr(task, "digest"):
        row["data"] = task.digest
    # `key_steps` keeps what was asked for (0 = the task's own), which is what a second start asks for again.
    row |= {"key_steps": job.steps, "source": source_digest(job.task, job.optimizer)}
    return {**row, **environment(job.device)}


def evaluated(task: Any, optimizer: Any) -> float:
    """Held-out loss at the weights that the optimizer would leave: some average them."""
    averages = is_schedule_free(optimizer)
    if averages:
        optimizer.eval()
    value = float(task.evaluate())
    if averages:
        optimizer.train()
    return value


def is_schedule_free(optimizer: Any) -> bool:
    return callable(getattr(optimizer, "eval", None)) and callable(getattr(optimizer, "train", None))


def row_key(row: dict) -> tuple:
    names = ["task", "optimizer", "options", "lr", "seed", "key_steps", "schedule", "evaluations", "source"]
    names.append("plain")
    row = {"evaluations": 0, "plain": False, **row}  # older rows have no curve
    return tuple(json.dumps(row[name], sort_keys=True) for name in names)  # JSON makes tuples and lists equal


def run_jobs(jobs: Iterable[Job], processes: int = 1, out: Path | None = None) -> list[dict]:
    """Rows of all jobs, in order; those already in ``out`` are not run again."""
    jobs = list(jobs)
    done = {row_key(row): row for row in read_rows(out)} if out else {}
    missing = [job for job in {job.key: job for job in jobs}.values() if job.key not in done]
    if len(missing) < len(jobs):
        print(f"{len(jobs) - len(missing)} of {len(jobs)} runs are already there", flush=True)
    start = time.perf_counter()
    failed = []
    for count, (job, row) in enumerate(_results(missing, processes), start=1):
        if isinstance(row, Exception):
            failed.append(f"{job}: {type(row).__name__}: {row}")
            print(f"[{count}/{len(missing)}] failed: {failed[-1]}", flush=True)
            continue
        done[job.key] = row
        if out:
            append_row(out, row)
        took = f"{row['seconds']:.0f} s, {time.perf_counter() - start:.0f} s in all"
        name = label(job.optimizer, job.options)
        rate = "none" if job.lr is None else f"{job.lr:g}"
        setting = f"{job.task} {name} lr={rate} {job.schedule} seed={job.seed}"
        print(f"[{count}/{len(missing)}] {setting}: {row['held_out']:.4f} ({took})", flush=True)
    if failed:
        raise SystemExit(f"{len(failed)} runs failed, the others are kept; the first: {failed[0]}")
    return [done[job.key] for job in jobs]


def _results(jobs: list[Job], processes: int) -> Iterator[tuple[Job, dict[str, Any] | Exception]]:
    """Each job with its row, or with the error that stopped it: one bad run must not cost the others."""
    if processes <= 1 or len(jobs) <= 1:
        for job in jobs:
            try:
                yield job, run_job(job)
            except Exception as error:
                yield job, error
        return
    # Read by OpenMP when a worker imports torch: two multi-threaded workers on one core stop each other.
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(jobs)), mp_context=context) as pool:
        futures = {pool.submit(run_job, job): job for job in jobs}
        for future in as_completed(futures):
            error = future.exception()
            yield futures[future], error if isinstance(error, Exception) else future.result()


def next_lr(lrs: list[float], best: float) -> float | None:
    """One more lr if the best one is at the edge of those tried."""
    lrs = sorted(lrs)
    if len(lrs) > 1 and best == lrs[-1]:
        return float(f"{best * lrs[-1] / lrs[-2]:.3g}")
    if len(lrs) > 1 and best == lrs[0]:
        return float(f"{best * lrs[0] / lrs[1]:.3g}")
    return None


def search(settings: list[Job], grid: list[float], seeds: list[int], extend: int, processes: int, out: Path):
    """Run the grid for each setting; where the best lr is at an edge, the grid grows.

    A setting is a Job whose lr and seed are ignored.
    """
    lrs = {i: list(grid) for i in range(len(settings))}
    rows: list[dict] = []
    for _ in range(extend + 1):
        jobs = [
            (i, replace(s, lr=lr, seed=seed))
            for i, s in enumerate(settings)
            for lr in lrs[i]
            for seed in seeds
        ]
        rows = run_jobs([job for _, job in jobs], processes, out)
        grown = False
        for i in lrs:
            mine: dict[float, dict[int, float]] = defaultdict(dict)
            for (k, job), row in zip(jobs, rows, strict=True):
                if k == i:
                    mine[job.lr][job.seed] = row["held_out"]
            more = next_lr(lrs[i], best_lr(mine))
            if more is not None:
                lrs[i].append(more)
                grown = True
        if not grown:
            break
    return rows


# --- command ------------------------------------------------------------------------------------------


def settings_for(args, names: list[str]) -> list[Job]:
    """One Job per task and optimizer; lr and seed are filled in later."""
    found = []
    for task in sorted(args.tasks, key=TASKS.index):
        device = args.device if task == "cat_lora" else "cpu"
        for text in names:
            name, options = parse_candidate(text)
            if not available(name):
                print(f"skipped: {name} cannot be imported here")
                continue
            if is_ours(name):
                options = {**parse_options(args.ours_args), **options}
            rest = (args.steps, args.schedule, device, args.text_cache, args.evaluations)
            found.append(Job(task, name, options, 0.0, 0, *rest))
    return found


def ablate(args) -> list[dict]:
    """The base setting and one changed option at a time, at given learning rates."""
    bases = settings_for(args, [args.base])
    changes: list[dict[str, Any]] = [{}, *(parse_options([item]) for item in args.ablate)]
    jobs = [
        replace(b, options={**b.options, **change}, lr=lr, seed=seed)
        for b in bases
        for change in changes
        for lr in args.lr
        for seed in args.seeds
    ]
    rows = run_jobs(jobs, args.jobs, args.out)
    if rows:
        print("\n" + ablation_table(rows, label(bases[0].optimizer, bases[0].options)))
    return rows


def main(argv: list[str] | None = None) -> list[dict]:
    parser = argument_parser(__doc__)
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS)
    parser.add_argument("--optimizers", nargs="+", default=OPTIMIZERS, help=CANDIDATE_HELP)
    parser.add_argument("--lr", nargs="+", type=float, default=GRID)
    parser.add_argument("--extend", type=int, default=3, help="how often a grid may grow")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=0, help="0: the task's own number")
    parser.add_argument("--schedule", default="constant", choices=list(SCHEDULES))
    parser.add_argument("--evaluations", type=int, default=0, help="points of the held-out learning curve")
    parser.add_argument("--ours-args", nargs="*", default=[], metavar="KEY=VALUE", help="options of ours")
    parser.add_argument("--ablate", nargs="+", metavar="KEY=VALUE", help="change one option of --base")
    parser.add_argument("--base", default="Automagic_CameAMP", help="the optimizer that --ablate changes")
    parser.add_argument("--device", default="auto", help="of cat_lora: auto, cpu, cuda (charlm: cpu)")
    parser.add_argument("--text-cache", help="of cat_lora: embeddings file, where MiniLM is not installed")
    parser.add_argument("--jobs", type=int, default=1, help="parallel processes, one thread each")
    parser.add_argument("--out", type=Path, default=RESULTS / "quality.jsonl")
    parser.add_argument("--quick", action="store_true", help="charlm-tiny, three steps: a smoke test")
    args = parser.parse_args(argv)
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.quick:
        args.tasks, args.steps, args.seeds, args.lr, args.extend = ["charlm-tiny"], 3, [0], GRID[:2], 0
    if args.ablate:
        return ablate(args)
    rows = search(settings_for(args, args.optimizers), args.lr, args.seeds, args.extend, args.jobs, args.out)
    print("\n" + table(rows))
    return rows


if __name__ == "__main__":
    main()
