"""Which tests speak for which module, the quickest to notice something first."""

from __future__ import annotations

ENGINE = "tests/engine/test_"
# Of the tests of resuming, those that are not the same for every class, option and type.
RESUME = [
    f"{ENGINE}resume.py::test_{name}"
    for name in ("types_and_values_after_loading", "wherever_it_was_stopped", "load_save_load_is_stable")
]
FLAT = [f"--deselect={ENGINE}memory.py::test_memory_is_flat"]
STACKING = "tests/recipes/test_stacking.py"
FEW = [
    f"--deselect={ENGINE}stacks.py::test_results_do_not_depend_on_the_size_of_the_stack",
    f"--deselect={STACKING}::test_one_and_two_threads_give_the_same_bits",
]
STACKS, OPTIONS = f"{ENGINE}stacks.py", f"{ENGINE}options.py"
NONFINITE, MEMORY, ROUNDING = f"{ENGINE}nonfinite.py", f"{ENGINE}memory.py", f"{ENGINE}rounding.py"
MASTER, ERRORS = f"{ENGINE}master_weights.py", f"{ENGINE}checkpoint_errors.py"
CONVERT, REFUSE = "tests/checkpoint/test_convert.py", "tests/checkpoint/test_refuse.py"
IMPORT, CHANGED = "tests/checkpoint/test_import.py", "tests/checkpoint/test_options.py"
AFTER, FUZZ = "tests/checkpoint/test_after_import.py", "tests/checkpoint/test_fuzz.py"
LOADING, VERIFY = "tests/faults/test_loading.py", "tests/faults/test_verify_resume.py"
FLIGHT, ROLLBACK = "tests/faults/test_flight.py", "tests/faults/test_rollback.py"
RELEASE, RELEASE_REFUSED = "tests/loops/test_release.py", "tests/loops/test_release_refused.py"
LOOPS, OFFLOAD = "tests/loops/test_rounding_in_loops.py", "tests/offload/test_offload.py"
HEALTH, SURFACE = "tests/monitor/test_health.py", "tests/improved/test_surface.py"
SAVED = ["tests/distributed/test_saved.py", "-k", "not four"]
SHARDED = ["tests/distributed/test_sharded.py", "tests/distributed/test_saved.py", "-k", "not four"]
LOOP, BLOCKS = "tests/storage/test_in_the_loop.py", "tests/storage/test_blocks.py"

# Not covered: the engines of whole steps (native*), whose tests hold them in lock-step with these.
COVERED: dict[str, list[str]] = {
    "engine/adapters.py": ["tests/engine/test_adapters.py"],
    "engine/compiled.py": ["tests/compiled/test_failures.py", "tests/compiled/test_matrix.py"],
    "engine/copies.py": ["tests/layout/test_strides.py"],
    "engine/eager.py": ["tests/layout/test_compile.py"],
    "engine/kinds.py": ["tests/tensors/test_kinds.py", "tests/tensors/test_twice.py"],
    "engine/pairs.py": ["tests/engine/test_adapters.py"],
    "engine/phases.py": ["tests/counts/test_phases_on_host.py", "tests/recipes/test_phases.py"],
    "engine/rest.py": ["tests/layout/test_engine_report.py", "tests/layout/test_strides.py"],
    "engine/saved_pairs.py": ["tests/checkpoint/test_mismatch.py", ERRORS],
    "engine/states.py": ["tests/tensors/test_resized.py", "tests/tensors/test_types.py"],
    "engine/tensors.py": ["tests/tensors/test_kinds.py", "tests/tensors/test_wrappers.py"],
    "engine/versions.py": ["tests/layout/test_versions.py"],
    "engine/who.py": ["tests/layout/test_engine_report.py"],
    "engine/arena.py": [LOADING, STACKS, *FEW],
    "engine/backends.py": [ROUNDING, LOADING, "tests/native/test_plan.py"],
    "engine/buckets.py": ["tests/test_lora_marks.py", STACKING, STACKS, *FEW],
    "engine/checkpoint.py": [ERRORS, REFUSE, CHANGED, LOADING, CONVERT, *RESUME, *SAVED],
    "engine/checks.py": [OPTIONS, NONFINITE],
    "engine/execute.py": [NONFINITE, ROUNDING, MASTER, LOADING, VERIFY, "tests/recipes/test_oracles.py"],
    "engine/flight.py": [FLIGHT, ROLLBACK],
    "engine/importers.py": [IMPORT, AFTER],
    "engine/landing.py": [LOADING, CONVERT, *RESUME],
    "engine/memory.py": ["tests/contextual/test_checkpoint.py", VERIFY, CONVERT],
    "engine/directions.py": ["tests/faults/test_directions.py"],
    "engine/offload.py": [OFFLOAD],
    "engine/optimizer.py": [
        OPTIONS,
        NONFINITE,
        ROUNDING,
        VERIFY,
        "tests/contextual/test_optimizer.py",
        *RESUME,
        RELEASE_REFUSED,
        CONVERT,
    ],
    "engine/precision.py": [LOOPS, "tests/loops/test_combinations.py"],
    "engine/readers.py": [IMPORT, AFTER, FUZZ],
    "engine/release.py": [RELEASE_REFUSED, RELEASE],
    "engine/report.py": [SURFACE, "tests/recipes/test_rate.py", MEMORY, *FLAT],
    "engine/reports.py": [
        SURFACE,
        HEALTH,
        "tests/monitor/test_memory.py",
        MEMORY,
        "tests/recipes/test_rate.py",
    ],
    "engine/resume.py": [VERIFY, FLIGHT],
    "engine/rounding.py": [ROUNDING, "tests/storage/test_softsign4.py"],
    "engine/samples.py": [FLIGHT, ROLLBACK],
    "engine/saved.py": [ERRORS, REFUSE, CHANGED, CONVERT, FUZZ, *RESUME],
    "engine/saved_groups.py": [ERRORS, REFUSE, CHANGED, CONVERT, *RESUME],
    "engine/sharded.py": SHARDED,
    "engine/shards.py": SHARDED,
    "engine/snapshot.py": [ROLLBACK, FLIGHT],
    "engine/views.py": [SURFACE, "tests/recipes/test_rate.py", BLOCKS],
    "storage/__init__.py": [BLOCKS, MEMORY, *FLAT, "tests/improved/test_memory.py", LOOP],
    "storage/affine8.py": ["tests/storage/test_affine8.py", LOOP],
    "storage/blocks.py": [BLOCKS, "tests/storage/test_dynamic8.py"],
    "storage/codec.py": [BLOCKS, "tests/storage/test_softsign8.py", "tests/storage/test_log8.py", LOOP],
    "storage/dynamic8.py": ["tests/storage/test_dynamic8.py", LOOP],
    "storage/residual.py": ["tests/storage/test_affine8.py", "tests/improved/test_codes.py", LOOP],
    "storage/rounding.py": [ROUNDING, MASTER],
    "storage/rows.py": ["tests/storage/test_rows.py", *SHARDED],
    "storage/small.py": ["tests/storage/test_small.py", "tests/storage/test_log16.py", CONVERT],
    "storage/softsign4.py": ["tests/storage/test_softsign4.py", "tests/storage/test_bits.py"],
    "storage/spec.py": [BLOCKS, "tests/storage/test_bits.py", MEMORY, *FLAT, VERIFY],
}
