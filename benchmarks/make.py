"""Learning tasks by name, for `compare.py`."""

from __future__ import annotations

from pathlib import Path


def make(name: str, seed: int, device: str = "cpu", text_cache: str | None = None):
    """The task of this name; ``flow@1`` is flow with batches of one."""
    name, _, batch = name.partition("@")
    if batch:
        task = make(name, seed, device, text_cache)
        task.batch = int(batch)
        return task
    if name == "cat_lora":
        from automagic_trainer.tasks import cat_lora

        return cat_lora(seed, device, text_cache=Path(text_cache) if text_cache else None)
    if name.startswith("charlm"):
        from benchmarks.charlm import CharLM

        return CharLM(name.removeprefix("charlm-"), seed, device)
    from benchmarks import adapted_tasks, auto_ranks, auto_tasks, solved_tasks

    if name == "inversion":
        return adapted_tasks.inversion(seed, text_cache)
    for tasks in (adapted_tasks.TASKS, solved_tasks.TASKS):
        if name in tasks:
            return tasks[name](seed)
    if "-alpha" in name:
        return auto_ranks.make(name, seed)
    return auto_tasks.make(name, seed)
