"""What every test runs under: one thread, no network, uninitialised memory that shows.

The environment is set before torch is imported, because OpenMP reads it once.
"""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Iterator

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("MPLBACKEND", "Agg")
# cuBLAS needs it to be deterministic; it is read when the first handle is made.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import hypothesis
import numpy as np
import pytest
import torch

torch.set_num_threads(1)
torch.set_num_interop_threads(1)

# The same examples on every run: a red CI can be repeated, and no example is lost to a slow machine.
hypothesis.settings.register_profile("project", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("project")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked ``gpu``, in the open, on a machine without a CUDA device."""
    if torch.cuda.is_available():
        return
    no_gpu = pytest.mark.skip(reason="no CUDA device here; run `make test-gpu` on one")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(no_gpu)


def pytest_collection_finish() -> None:
    """What is there before the first test stays: the collector need not go through it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _same_start(request: pytest.FixtureRequest) -> Iterator[None]:
    """Seed all generators, fill ``torch.empty`` with NaN, and leave no global setting behind.

    Deterministic algorithms are what makes torch fill uninitialised memory; they also turn an
    operation without a repeatable form into an error, which an optimizer must never contain.
    Tests marked ``gpu`` choose for themselves: there torch has no repeatable form of some
    operations that a test (not the optimizer) may use.
    """
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    if "gpu" not in request.keywords:
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
