"""Every option acts, and acts alike in every executor.

Walked from the configs: an option without a row in rows.py fails, and so does one whose row shows nothing.
The reference runs with and without the option through all phases; the kernels take single steps from the
reference's state, within the bounds of native/lockstep.py; sharded parameters take the same run again.
Tracing costs seconds, so the compiled executor has its rows in compiled/test_matrix.py, several options in
one; here it is checked that none is missing there.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from automagic_cameamp import OPTIMIZERS, aliases
from compiled import test_matrix as compiled_matrix
from matrix import drive
from matrix.rows import REST, ROWS, cases, off_default, options_of
from native import lockstep

CASES = cases()
SHOWN = [(name, option) for name, option in CASES if ROWS[option].shows == "numbers"]


def test_every_option_has_a_row() -> None:
    every = {option for name in OPTIMIZERS for option in options_of(name)}
    assert every == ROWS.keys() == {option for _, option in CASES}
    for name, option in CASES:
        config: Any = OPTIMIZERS[name].config_class
        default = aliases.default_of(config.__dataclass_fields__[option])
        assert off_default(option, default, ROWS[option]), (name, option)


_PLAIN: dict[str, dict[str, torch.Tensor]] = {}


def without(name: str, option: str, whole: bool = True) -> dict[str, torch.Tensor]:
    """The reference's numbers after a run at the option's default; runs that are alike are made once."""
    row = ROWS[option]
    key = repr((name, row.beside, row.dtype, row.scheduled, whole))
    if key not in _PLAIN:
        _PLAIN[key] = drive.run(name, row, {}, whole)
    return _PLAIN[key]


@pytest.mark.parametrize(("name", "option"), SHOWN)
def test_an_option_acts_alike_in_reference_and_kernels(name: str, option: str) -> None:
    row = ROWS[option]
    given = {option: row.value}
    reference, params = drive.make(name, row, {**given, "engine": "reference"})
    for step in range(drive.STEPS):
        if step in (1, 3, drive.STEPS - 1):  # early, middle, late
            other, others = drive.make(name, row, {**given, "engine": "native"})
            with torch.no_grad():
                for p, q in zip(params, others, strict=True):
                    q.copy_(p)
            other.load_state_dict(copy.deepcopy(reference.state_dict()))
            before = [lockstep.weights(reference, p) for p in params]
            for optimizer, own in ((reference, params), (other, others)):
                drive.take(optimizer, own, step, row)
            first = [r.engine for r in other.engine_report().rows if "param_0" in r.names]
            assert first == ["native" if row.native else "reference"], str(other.engine_report())
            every = reference.config.sync_frequency if hasattr(reference.config, "sync_frequency") else 100
            lockstep.compare([(reference, params), (other, others)], before, renewed=step % every == 0)
        else:
            drive.take(reference, params, step, row)
    assert drive.differ(dict(drive.numbers(reference, params)), without(name, option)), "it changes nothing"


# ---------------------------------------------------------------- sharded parameters

# Their codes end with a row, so what is equal to the bit is looked at in 32 bits.
WIDE = {name: name.removesuffix("8bit") for name in OPTIMIZERS if name.endswith("8bit")}


@pytest.fixture(scope="module")
def one_process() -> Iterator[None]:
    dist = pytest.importorskip("torch.distributed")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(("name", "option"), SHOWN)
def test_an_option_acts_on_sharded_parameters(name: str, option: str, one_process: None) -> None:
    """As in the reference, to the bit, or as the table of docs/training.md says.

    One process has all rows here; sums over several are looked at in tests/distributed.
    """
    row = ROWS[option]
    wide = WIDE.get(name, name)
    name = wide if option in options_of(wide) else name
    given = {option: row.value}
    if row.sharded == "refused":
        with pytest.raises(ValueError, match="with sharded parameters"):
            drive.run(name, row, given, whole=False)
        return
    got = drive.run(name, row, given, whole=False)
    if name not in REST and name == wide:
        assert not drive.differ(got, drive.run(name, row, {**given, **drive.apart(name)}))
    assert drive.differ(got, without(name, option, whole=False)) is (not row.sharded)


# ---------------------------------------------------------------- what shows elsewhere


def test_verbose_is_a_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "automagic_cameamp")
    row = ROWS["verbose"]
    for value in (False, True):
        caplog.clear()
        optimizer, params = drive.make("Automagic_CameAMP", row, {"verbose": value})
        drive.take(optimizer, params, 0, row)
        assert bool(caplog.records) is value


def test_engine_is_who_steps() -> None:
    row, seen = ROWS["engine"], {}
    for engine in ("reference", "native", "auto"):
        optimizer, params = drive.make("Automagic_CameAMP", row, {"engine": engine})
        drive.take(optimizer, params, 0, row)
        seen[engine] = {r.engine for r in optimizer.engine_report().rows}
    assert seen == {"reference": {"reference"}, "native": {"native"}, "auto": {"native"}}


def test_offload_is_where_the_step_runs() -> None:
    """With the same result, to the bit."""
    row, ends = ROWS["offload"], []
    for offload in ("none", "cpu"):
        optimizer, params = drive.make("Automagic_CameAMP", row, {"offload": offload})
        for step in range(3):
            drive.take(optimizer, params, step, row)
        reasons = " ".join(r.reason for r in optimizer.engine_report().rows)
        assert ("host" in reasons) is (offload == "cpu")
        ends.append(dict(drive.numbers(optimizer, params)))
    assert not drive.differ(*ends)


def test_the_compiled_executor_sees_every_option() -> None:
    """Or its tests have no row for it: states are coded inside the graph, so codes count as well."""
    rows = [*compiled_matrix.OPTIONS, *compiled_matrix.CLASSES.values()]
    seen = {option for _, options in rows for option in options}
    assert not ROWS.keys() - seen - compiled_matrix.APART
