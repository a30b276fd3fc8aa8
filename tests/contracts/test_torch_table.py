"""docs/evidence/torch-suite.md and the tests name each other: nothing is claimed that is not run."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from contracts.test_torch_renewed import OptimizerErrorEnum

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "evidence" / "torch-suite.md").read_text("utf-8")
OURS = ["test_torch_renewed.py", "test_torch_state.py", "test_torch_suite.py"]
# Checks of TestOptimRenewed in torch's repository, and the suites that it is run with.
TORCHS = """
test_optim_infos_do_not_specify_global_cliquey_kwargs test_errors test_forloop_goes_right_direction
test_forloop_goes_right_direction_multigpu test_param_group_with_lrscheduler_goes_right_direction
test_tensor_lr test_tensor_lr_num_dim test_rosenbrock_sparse test_complex test_complex_2d
test_foreach_matches_forloop test_mixed_device_dtype
test_set_default_dtype_works_with_foreach test_foreach_large_tensor
test_peak_memory_foreach test_fused_matches_forloop test_fused_error_on_params_on_meta test_fused_large_tensor
test_fused_does_not_step_if_foundinf test_cpu_load_state_dict test_param_groups_weight_decay
test_param_groups_lr test_step_is_noop_when_params_have_no_grad test_step_is_noop_for_zero_grads
test_grads_are_never_inplaced_into test_optimizer_can_be_printed test_state_dict_deterministic
test_can_load_older_state_dict test_can_load_from_to_named_state_dict
test_save_load_equality_with_weights_only test_load_nontensor_step test_state_dict_with_cuda_params
test_state_dict_pre_hook test_state_dict_post_hook test_state_dict_pre_post_hook
test_load_state_dict_pre_hook_and_prepend test_load_state_dict_post_hook test_load_state_dict_pre_post_hook
test_step_post_hook test_step_pre_hook test_step_all_hooks test_deepcopy_copies_all_public_attrs
test_second_order_optims_return_consistent_types test_fused_cpu_matches_cuda test_defaults_changed_to_foreach
test_non_empty_state TestDifferentiableOptimizer CompiledOptimizerTests TestLRScheduler TestSWAUtils
""".split()


def rows() -> list[list[str]]:
    table = PAGE.split("## Keywords")[0]
    found = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in row] for row in found]


def codes(text: str) -> list[str]:
    return re.findall(r"`([\w.=]+)`", text)


def functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text("utf-8"))
    return {n.name for n in tree.body if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")}


def everywhere() -> set[str]:
    return set().union(*(functions(path) for path in (ROOT / "tests").rglob("test_*.py")))


def test_every_check_of_torch_has_one_row() -> None:
    named = [name for row in rows() for name in codes(row[0])]
    assert sorted(named) == sorted(TORCHS)


def test_every_test_that_is_named_exists() -> None:
    named = {name for row in rows() for name in codes(row[1])}
    assert named - everywhere() == set()


def test_a_row_without_a_test_says_why() -> None:
    assert all(len(row) == 3 and (codes(row[1]) or len(row[2]) > 15) for row in rows())


@pytest.mark.parametrize("file", OURS)
def test_every_test_of_ours_is_in_the_page(file: str) -> None:
    missing = functions(ROOT / "tests" / "contracts" / file) - set(codes(PAGE))
    assert missing == set()


def test_the_keywords_of_the_page_are_those_that_are_refused() -> None:
    listed = {name for line in PAGE.split("## Keywords")[1].splitlines() if line.startswith("| `")
              for name in codes(line.split("|")[1])}  # fmt: skip
    assert listed == {"foreach", "fused", "capturable", "differentiable", "maximize"}


def test_torchs_database_is_where_we_found_it() -> None:
    assert {e.name for e in OptimizerErrorEnum} == {"CONSTRUCTION_ERROR", "STEP_ERROR"}
