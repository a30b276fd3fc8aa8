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

LOCKSTEP, PLAN = "tests/native/test_lockstep.py", "tests/native/test_plan.py"
SHARES, TOLD = "tests/native/test_shares.py", "tests/native/test_told.py"
NATIVE = [
    PLAN,
    "tests/native/test_abi.py",
    f"{LOCKSTEP}::test_one_step_from_the_same_state",
    f"{LOCKSTEP}::test_low_precision_weights",
    f"{LOCKSTEP}::test_the_automatic_level",
    f"{LOCKSTEP}::test_momentum_scales",
    f"{LOCKSTEP}::test_a_step_that_searches_directions",
    "tests/matrix/test_options.py::test_an_option_acts_alike_in_reference_and_kernels",
]

# What holds the kernels to the reference; the last two compile the codes alone, for every instruction set.
KERNELS = [
    f"{LOCKSTEP}::test_one_step_from_the_same_state",  # the most in the least time
    LOCKSTEP,
    "tests/matrix/test_options.py::test_an_option_acts_alike_in_reference_and_kernels",
    "tests/native/test_fuzz_shapes.py",
    SHARES,
    "tests/recipes/test_auto_parts.py",
    "tests/native/test_small_codes.py",
    "tests/native/test_codecs.py",
    "-k",
    "not isa_base and not smaller_instruction_sets",
]

# Of the rate that is found.
FOUND = [f"tests/recipes/test_auto_{name}.py" for name in ("level", "falls", "schedules", "parts", "limit")]

COVERED: dict[str, list[str]] = {
    "techniques/level.py": [*FOUND, "tests/recipes/test_level_rules.py"],
    "recipes/_level.py": [*FOUND, "tests/recipes/test_level_rules.py"],
    "state/adapters.py": ["tests/engine/test_adapters.py", "tests/engine/test_edited_groups.py"],
    "executors/compiled.py": ["tests/compiled/test_failures.py", "tests/compiled/test_matrix.py"],
    "executors/native/call.py": [*NATIVE, "tests/contextual/test_optimizer.py"],
    "executors/native/plan.py": [
        PLAN,
        TOLD,
        "tests/layout/test_versions.py",
        "tests/counts/test_caches.py",
        *NATIVE[1:],
    ],
    "executors/native/table.py": [*NATIVE, TOLD, "tests/layout/test_engine_report.py"],
    "kernels/build.py": ["tests/test_packaging.py::test_the_optimizers_wheel_is_small"],
    "kernels/layout.py": NATIVE,
    "kernels/native.py": [
        *NATIVE[:2],
        f"{LOCKSTEP}::test_a_step_is_told_the_limit",
        "tests/layout/test_engine_report.py",
    ],
    "executors/native/copies.py": ["tests/layout/test_strides.py"],
    "eager.py": ["tests/layout/test_compile.py"],
    "state/kinds.py": ["tests/tensors/test_kinds.py", "tests/tensors/test_twice.py"],
    "state/limit.py": ["tests/recipes/test_auto_limit.py"],
    "state/owned.py": ["tests/offload/test_writes.py"],
    "state/pairs.py": ["tests/engine/test_adapters.py"],
    "state/counts.py": [
        "tests/counts/test_phases_on_host.py",
        "tests/recipes/test_phases.py",
        "tests/counts/test_caches.py",
    ],
    "state/fields.py": [
        NONFINITE,
        ROUNDING,
        MASTER,
        LOADING,
        VERIFY,
        STACKS,
        "tests/layout/test_on_the_host.py",
    ],
    "state/kept.py": [HEALTH, STACKS, VERIFY],
    "state/model.py": [OPTIONS, ROUNDING, MASTER, VERIFY, "tests/test_lora_marks.py", *RESUME],
    "state/names.py": [ERRORS, CONVERT, "tests/checkpoint/test_own_entries.py"],
    "checkpoints/remembered.py": ["tests/contextual/test_checkpoint.py", VERIFY, CONVERT],
    "executors/choose.py": ["tests/layout/test_engine_report.py", "tests/native/test_plan.py"],
    "executors/reference.py": [NONFINITE, ROUNDING, "tests/recipes/test_oracles.py"],
    "executors/said.py": ["tests/layout/test_engine_report.py", "tests/native/test_plan.py"],
    "executors/native/again.py": ["tests/offload/test_again.py"],
    "executors/native/asked.py": ["tests/offload/test_again.py", "tests/native/test_plan.py"],
    "executors/native/given.py": ["tests/native/test_looks.py", "tests/layout/test_strides.py"],
    "executors/native/held.py": [
        "tests/native/test_looks.py",
        f"{PLAN}::test_rows_are_gathered_wherever_they_lie",
    ],
    "executors/native/looks.py": ["tests/native/test_looks.py"],
    "executors/native/executor.py": ["tests/layout/test_engine_report.py", PLAN, RELEASE],
    "step.py": [NONFINITE, RELEASE_REFUSED, RELEASE, "tests/contextual/test_optimizer.py", *RESUME],
    "executors/native/rest.py": ["tests/layout/test_engine_report.py", "tests/layout/test_strides.py"],
    "checkpoints/pairs.py": ["tests/checkpoint/test_mismatch.py", ERRORS],
    "state/fits.py": ["tests/tensors/test_resized.py", "tests/tensors/test_types.py"],
    "state/tensors.py": ["tests/tensors/test_kinds.py", "tests/tensors/test_wrappers.py"],
    "executors/native/versions.py": ["tests/layout/test_versions.py"],
    "executors/report.py": ["tests/layout/test_engine_report.py"],
    "state/stacks.py": [LOADING, STACKS, *FEW],
    "executors/work.py": [ROUNDING, LOADING, "tests/native/test_plan.py"],
    "state/chunks.py": ["tests/test_lora_marks.py", STACKING, STACKS, *FEW],
    "checkpoints/load.py": [ERRORS, REFUSE, CHANGED, LOADING, CONVERT, *RESUME, *SAVED],
    "state/groups.py": [OPTIONS, NONFINITE, "tests/recipes/test_auto_schedules.py"],
    "executors/update.py": [
        "tests/tensors/test_wrappers.py",
        NONFINITE,
        ROUNDING,
        MASTER,
        LOADING,
        VERIFY,
        "tests/recipes/test_oracles.py",
    ],
    "training/recorder.py": [FLIGHT, ROLLBACK],
    "checkpoints/importers.py": [IMPORT, AFTER],
    "checkpoints/rows.py": [LOADING, CONVERT, *RESUME],
    "state/memory.py": ["tests/contextual/test_checkpoint.py", VERIFY, CONVERT],
    "executors/native/searches.py": ["tests/faults/test_directions.py", "tests/counts/test_caches.py"],
    "training/offload.py": [OFFLOAD, "tests/offload/test_writes.py"],
    "training/ring.py": [
        OFFLOAD,
        *(f"tests/offload/test_{x}.py" for x in ("ring", "interrupted", "ring_faults")),
        RELEASE,
    ],
    "state/crossing.py": ["tests/offload/test_ring.py", RELEASE],
    "optimizer.py": [
        OPTIONS,
        NONFINITE,
        ROUNDING,
        VERIFY,
        "tests/contextual/test_optimizer.py",
        *RESUME,
        RELEASE_REFUSED,
        CONVERT,
    ],
    "training/precision.py": [LOOPS, "tests/loops/test_combinations.py"],
    "checkpoints/readers.py": [IMPORT, AFTER, FUZZ],
    "training/release.py": [RELEASE_REFUSED, "tests/loops/test_release_norm.py", RELEASE],
    "reading/bytes.py": [SURFACE, "tests/recipes/test_rate.py", MEMORY, *FLAT],
    "reading/reports.py": [
        SURFACE,
        HEALTH,
        "tests/monitor/test_memory.py",
        MEMORY,
        "tests/recipes/test_rate.py",
    ],
    "training/verify.py": [VERIFY, FLIGHT],
    "state/random_bits.py": [ROUNDING, "tests/storage/test_softsign4.py"],
    "training/samples.py": [FLIGHT, ROLLBACK],
    "checkpoints/saved.py": [ERRORS, REFUSE, CHANGED, CONVERT, FUZZ, *RESUME],
    "checkpoints/groups.py": [ERRORS, REFUSE, CHANGED, CONVERT, *RESUME],
    "executors/sharded.py": SHARDED,
    "state/shards.py": SHARDED,
    "training/snapshot.py": [ROLLBACK, FLIGHT],
    "reading/views.py": [SURFACE, "tests/recipes/test_rate.py", BLOCKS],
    "storage/__init__.py": [BLOCKS, MEMORY, *FLAT, "tests/improved/test_memory.py", LOOP],
    "storage/affine8.py": ["tests/storage/test_affine8.py", LOOP],
    "storage/blocks.py": [BLOCKS, "tests/storage/test_dynamic8.py"],
    "storage/codec.py": [BLOCKS, "tests/storage/test_softsign8.py", "tests/storage/test_log8.py", LOOP],
    "storage/constant.py": ["tests/storage/test_constant.py"],
    "storage/dynamic8.py": ["tests/storage/test_dynamic8.py", LOOP],
    "storage/residual.py": ["tests/storage/test_affine8.py", "tests/improved/test_codes.py", LOOP],
    "storage/rounding.py": [ROUNDING, MASTER],
    "storage/rows.py": ["tests/storage/test_rows.py", *SHARDED],
    "storage/small.py": ["tests/storage/test_small.py", "tests/storage/test_log16.py", CONVERT],
    "storage/softsign4.py": ["tests/storage/test_softsign4.py", "tests/storage/test_bits.py"],
    "storage/spec.py": [BLOCKS, "tests/storage/test_bits.py", MEMORY, *FLAT, VERIFY],
}
