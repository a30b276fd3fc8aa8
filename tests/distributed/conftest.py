"""All checks of one number of processes run in one start of them: starting costs more than running."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from distributed.launch import launch

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_gloo_available(), reason="torch was built without gloo"
)

Results = list[dict[str, Any]]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="session")
def two(folder: Path) -> Results:
    checks = ["replicas", "losses", "lockstep", "codes", "collectives"]
    checks += ["batches", "training", "nonfinite", "refusals"]
    return launch(2, folder, [*checks, "four_bits", "save", "load", "flat", "zero", "changed_shards"])


@pytest.fixture(scope="session")
def four(folder: Path, two: Results) -> Results:
    return launch(4, folder, ["replicas", "losses", "lockstep", "training", "nonfinite", "load"])


@pytest.fixture(scope="session")
def one(folder: Path, two: Results) -> Results:
    return launch(1, folder, ["load", "load_gathered", "zero"])
