"""All checks of one number of processes run in one start of them: starting costs more than running."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from distributed.launch import launch
from once import once

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_gloo_available(), reason="torch was built without gloo"
)

Results = list[dict[str, Any]]


@pytest.fixture(scope="session")
def two(tmp_path_factory: pytest.TempPathFactory) -> Results:
    checks = ["replicas", "losses", "lockstep", "codes", "collectives"]
    checks += ["batches", "training", "nonfinite", "refusals"]
    checks += ["four_bits", "save", "load", "flat", "zero", "changed_shards"]
    return seen(tmp_path_factory, 2, checks)


@pytest.fixture(scope="session")
def four(tmp_path_factory: pytest.TempPathFactory, two: Results) -> Results:
    checks = ["replicas", "losses", "lockstep", "training", "nonfinite", "load"]
    return seen(tmp_path_factory, 4, checks)


@pytest.fixture(scope="session")
def one(tmp_path_factory: pytest.TempPathFactory, two: Results) -> Results:
    return seen(tmp_path_factory, 1, ["load", "load_gathered", "zero"])


def seen(factory: pytest.TempPathFactory, world: int, checks: list[str]) -> Results:
    """What these checks saw on so many processes; what two processes saved is there for the others."""

    def run(folder: Path) -> None:
        saved = folder.with_name("ranks-2")
        (folder / "seen.json").write_text(json.dumps(launch(world, saved, checks)))

    return json.loads((once(factory, f"ranks-{world}", run) / "seen.json").read_text())
