"""Every benchmark script runs with --quick and writes rows that the table printer understands."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from benchmarks.common import read_rows

from benchmarks import (
    against,
    auto_rate,
    charlm,
    common,
    compare,
    host_overlap,
    memory,
    quant_update_error,
    release_memory,
    resident,
    run_all,
    scaling,
    step_cpu,
    table,
    traffic,
)

OURS = ["Automagic_CameAMP", "Automagic_CameAMP8bit"]
ENVIRONMENT = {"date", "cpu", "threads", "python", "torch", "package", "commit"}


def check(path, needed: set[str]) -> list[dict]:
    rows = read_rows(path)
    assert rows
    for row in rows:
        assert needed | ENVIRONMENT <= set(row)
    printed = table.main([str(path)])
    assert "Automagic_CameAMP8bit" in printed
    return rows


def test_step_cpu(tmp_path):
    out = tmp_path / "step.jsonl"
    names = ["adamw-foreach", *OURS]
    phases = ["--phases", "early", "middle", "late"]
    step_cpu.main(["--quick", "--optimizers", *names, *phases, "--out", str(out)])
    needed = {"workload", "ms", "ns_per_param", "ratio", "state_bytes_per_param", "ops_per_step", "first_s"}
    rows = check(out, needed | {"peak_rss_mib", "peak_tensor_mib", "rounds_dropped"})
    assert len(rows) == 2 + 2 * 3
    by_name = {(r["optimizer"], r["phase"]): r for r in rows}
    assert by_name["adamw-fused", None]["ratio"] == 1.0
    eight = by_name["Automagic_CameAMP8bit", "early"]["state_bytes_per_param"]
    assert 0 < eight < by_name["Automagic_CameAMP", "early"]["state_bytes_per_param"]


def test_scaling_deals_out_a_step(tmp_path):
    out = tmp_path / "scaling.jsonl"
    scaling.main(["--quick", "--optimizers", OURS[1], "--out", str(out)])
    for row in check(out, {"ms", "measured_2", "bytes_moved_per_param", "memory_ms", "isa"}):
        for threads, on in row["on"].items():
            assert 0 < on["serial_ms"] and 0 < on["largest_share"] <= 1 and on["shares"] >= on["sections"]
            assert 1 <= on["imbalance"] <= int(threads)
            assert 0 < on["speedup"]


def test_two_checkouts_step_in_turn(tmp_path):
    out = tmp_path / "against.jsonl"
    size = ["--workload", "one-small", "--threads", "1", "--rounds", "2", "--steps", "2"]
    against.main([str(common.ROOT), "--optimizers", *OURS, *size, "--out", str(out)])
    for row in check(out, {"ratio", "python_ms", "python_ms_there", "against", "isa"}):
        assert 0 < row["python_ms"] <= row["ms"]
        assert row["ratio_p10"] <= row["ratio"] <= row["ratio_p90"]


def test_step_cpu_chunk_sweep_changes_the_peak(tmp_path):
    out = tmp_path / "step.jsonl"
    arguments = [
        "--quick",
        "--optimizers",
        OURS[0],
        "--engines",
        "reference",
        "--phases",
        "late",
        "--chunk",
        "all",
        "16384",
    ]
    rows = step_cpu.main([*arguments, "--out", str(out)])
    whole, small = (next(r for r in rows if r["chunk"] == chunk) for chunk in (1 << 60, 16384))
    assert small["peak_tensor_mib"] < whole["peak_tensor_mib"]
    assert small["ops_per_step"] > whole["ops_per_step"]


def test_step_cpu_counts_the_bytes_of_the_native_passes(tmp_path):
    pytest.importorskip("automagic_cameamp.kernels.native")
    from automagic_cameamp.kernels.native import why_not

    if why_not() is not None:
        pytest.skip(f"no native library: {why_not()}")
    arguments = ["--quick", "--optimizers", OURS[1], "--engines", "native", "reference", "--phases", "late"]
    rows = step_cpu.main([*arguments, "--out", str(tmp_path / "step.jsonl")])
    native, reference = (
        next(r for r in rows if r["options"].get("engine") == e) for e in ("native", "reference")
    )
    assert "bytes_moved_per_param" not in reference
    moved = native["bytes_moved_per_param"]
    # Small tensors are read and written once: weights 8, gradient 4, momentum 2, mask 1, and the vectors.
    assert 15.0 < moved["all"] < 18.0 and moved["all"] == pytest.approx(moved["bound"], rel=0.1)


def test_bytes_of_a_large_tensor_by_pass():
    p = torch.nn.Parameter(torch.zeros(512, 1024))
    p.grad = torch.zeros_like(p)
    n = p.numel()
    state = {
        "exp_avg_q": torch.zeros(n, dtype=torch.uint8),
        "exp_avg_q_scale": torch.zeros(n // 256),
        "lr_mask": torch.zeros(n, dtype=torch.uint8),
        "exp_avg_sq_row": torch.zeros(512),
    }
    passes = traffic.passes_of(p, state, early=False, late=False)
    code = n + n // 64
    assert passes == {
        "gradient": 4 * n + 2048,
        "momentum": 4 * n + code + 2 * n,
        "weights": 4 * n + 2 * code + 8 * n + n + 2048,
    }
    late = traffic.passes_of(p, state, early=False, late=True)
    assert passes["momentum"] - late["momentum"] == n, "a frozen mask is not written"


def test_memory(tmp_path):
    out = tmp_path / "memory.jsonl"
    memory.main(["--quick", "--optimizers", "adamw", *OURS, "--out", str(out)])
    rows = check(out, {"case", "dtype", "bytes_per_param", "reported", "numel"})
    for row in rows:
        if row["optimizer"] in OURS:
            assert row["reported"] == pytest.approx(row["bytes_per_param"], rel=0.02)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the resident set is read from /proc")
def test_resident(tmp_path):
    out = tmp_path / "resident.jsonl"
    resident.main(["--quick", "--optimizers", OURS[1], "--out", str(out)])
    rows = check(out, {"workload", "steps", "state_mib", "resident_mib", "high_mib"})
    assert 0 < rows[0]["state_mib"] < 5
    assert rows[0]["resident_mib"] <= rows[0]["high_mib"]


def test_host_overlap(tmp_path):
    out = tmp_path / "rows.jsonl"
    for more in ([], ["--ns", "1"]):
        rows = host_overlap.main(["--quick", "--optimizers", OURS[1], *more, "--out", str(out)])
        assert [row["share"] for row in rows] == list(host_overlap.SHARES)
        assert all(row["together"] > 0 for row in rows)


def test_release_memory(tmp_path):
    out = tmp_path / "release.jsonl"
    release_memory.main(["--quick", "--optimizers", OURS[1], "--out", str(out)])
    plain, released = check(out, {"weights", "state", "largest_gradient", "added", "over_bound"})
    assert plain["added"] > plain["weights"] > released["added"] > released["largest_gradient"]


def test_quant_update_error(tmp_path):
    out = tmp_path / "error.jsonl"
    quant_update_error.main(["--quick", "--pair", OURS[1], OURS[0], "--out", str(out)])
    rows = check(out, {"reference", "data", "seed", "steps", "error_percent"})
    assert all(0 < row["error_percent"] < 50 for row in rows)


def test_update_error_of_equal_optimizers_is_zero_and_of_unequal_ones_is_not():
    same = quant_update_error.update_error(torch.optim.AdamW, {}, "adamw", {}, "heavy", steps=5)
    faster = {"betas": (0.5, 0.9)}
    other = quant_update_error.update_error(torch.optim.AdamW, faster, "adamw", {}, "heavy", steps=5)
    assert same == 0.0
    assert other > 0.05


def test_gradients_are_what_their_names_say():
    first = list(quant_update_error.gradients("heavy+dead", 0, 200))
    stacked = torch.stack(first)
    dead = (stacked == 0).all(0).float().mean()
    assert 0.005 < dead < 0.02
    spread = stacked.std(0).log()[(stacked != 0).any(0)].std()
    assert 1.2 < spread < 2.4  # three lognormal factors of 1: sqrt(3)
    again = next(quant_update_error.gradients("heavy+dead", 0, 1))
    assert torch.equal(first[0], again)


def test_charlm_is_deterministic_and_learns():
    def final(steps: int) -> float:
        job = compare.Job("charlm-tiny", "adamw", {}, 3e-3, 0, steps)
        return compare.run_job(job)["held_out"]

    assert final(2) == final(2)
    assert final(20) < final(2) < math.log(256) + 0.1


def test_accuracy_counts_right_guesses():
    task = charlm.CharLM("tiny")
    most = int(task.held_out.bincount().argmax())
    with torch.no_grad():
        task.model.head.weight.zero_()
        task.model.norm.bias.fill_(1.0)
        task.model.head.weight[most] = 1.0  # always guesses the most frequent byte
    starts = torch.cat(task._held_out_windows())
    truth = task.held_out[starts[:, None] + 1 + torch.arange(task.context)]
    assert task.accuracy() == pytest.approx(float((truth == most).float().mean()))


def test_charlm_script_runs():
    rows = charlm.main(["--quick", "--optimizer", OURS[1]])
    assert rows[0]["full_options"]["warmup_steps"] == 2  # a third of five steps
    assert math.isfinite(rows[0]["held_out"])


def test_charlm_keeps_files_apart():
    train, held_out, digest = charlm.corpus()
    assert len(train) > 500_000 and len(held_out) > 50_000 and len(digest) == 12
    needle = bytes(held_out[1000:1200].tolist())
    assert needle not in bytes(train.tolist())


def test_compare_resumes(tmp_path, capsys):
    out = tmp_path / "quality.jsonl"
    arguments = ["--quick", "--optimizers", "adamw", *OURS, "--out", str(out)]
    compare.main(arguments)
    rows = check(out, {"task", "optimizer", "lr", "seed", "held_out", "source", "data", "train_curve"})
    capsys.readouterr()
    compare.main(arguments)
    assert len(read_rows(out)) == len(rows) == 6
    assert "6 of 6 runs are already there" in capsys.readouterr().out


def test_ablation_reports_each_change_against_the_base(tmp_path, capsys):
    out = tmp_path / "quality.jsonl"
    rows = compare.main(["--quick", "--ablate", "use_tam=false", "weight_decay=0", "--out", str(out)])
    assert [row["options"] for row in rows[::2]] == [{}, {"use_tam": False}, {"weight_decay": 0}]
    assert "minus base" in capsys.readouterr().out


def test_one_failing_run_does_not_cost_the_others(tmp_path):
    out = tmp_path / "quality.jsonl"
    jobs = [compare.Job("charlm-tiny", "adamw", options, 1e-3, 0, 1) for options in ({"typo": 1}, {})]
    with pytest.raises(SystemExit, match="1 runs failed.*typo"):
        compare.run_jobs(jobs, 1, out)
    assert [row["options"] for row in read_rows(out)] == [{}]


def test_schedules():
    values = {name: [f(100, step) for step in range(101)] for name, f in compare.SCHEDULES.items()}
    assert set(values["constant"]) == {1.0}
    assert values["cosine"][0] == 1.0 and abs(values["cosine"][100]) < 1e-12
    assert values["warmup"][0] == 0.1 and set(values["warmup"][9:]) == {1.0}
    assert values["warmup-cosine"][0] == 0.1 and abs(values["warmup-cosine"][100]) < 1e-12


def test_parallel_runs_give_the_same_rows(tmp_path):
    jobs = [compare.Job("charlm-tiny", "adamw", {}, lr, 0, 2) for lr in (1e-3, 2e-3)]
    one = compare.run_jobs(jobs, 1)
    two = compare.run_jobs(jobs, 2, tmp_path / "quality.jsonl")
    assert [row["held_out"] for row in one] == [row["held_out"] for row in two]


def test_search_grows_the_grid_at_an_edge(monkeypatch):
    asked = []

    def fake(jobs, processes, out):
        jobs = list(jobs)
        asked.append({job.lr for job in jobs})
        return [{"held_out": abs(math.log(job.lr / 0.016))} for job in jobs]

    monkeypatch.setattr(compare, "run_jobs", fake)
    compare.search([compare.Job("charlm-tiny", "adamw", {})], [0.001, 0.002, 0.004], [0, 1], 5, 1, None)
    assert max(asked[-1]) == 0.032  # one beyond the best, 0.016
    asked.clear()
    compare.search([compare.Job("charlm-tiny", "adamw", {})], [0.008, 0.016, 0.032], [0, 1], 5, 1, None)
    assert len(asked) == 1


def test_auto_rate_resumes_and_draws(tmp_path, capsys):
    out = tmp_path / "auto_rate.jsonl"
    arguments = ["--quick", "--out", str(out)]
    rows = auto_rate.main(arguments)
    assert len(rows) == len(auto_rate.RATES) + 1 and all(row["rate_curve"] for row in rows)
    auto_rate.main(arguments)
    assert f"{len(rows)} of {len(rows)} runs are already there" in capsys.readouterr().out
    table = auto_rate.table(auto_rate.read_rows(out))
    assert "| flow | constant, 3 | adamw | 1.000 |" in table and "Automagic_CameAMP8bit" in table


NAMED = dict.fromkeys([*auto_rate.CHOSEN, *auto_rate.CONFIRMED, *compare.SOLVED, *compare.ADAPTED])


@pytest.mark.parametrize("name", [name for name in NAMED if "lm" not in name])
def test_tasks_that_auto_rate_names_can_be_made(name):
    task = compare.make_task(compare.Job(name, "adamw", {}))
    assert len(list(task.parameters())) > 0 and task.loss(0).isfinite()


def test_batches_are_named_behind_an_at():
    task = compare.make_task(compare.Job("flow@1", "adamw", {}))
    assert task.batch == 1 and compare.make_task(compare.Job("flow", "adamw", {})).batch == 4
    assert compare.source_digest("flow@1", "adamw") == compare.source_digest("flow", "adamw")


def test_best_lr_needs_all_seeds():
    assert compare.best_lr({0.1: {0: 1.0, 1: 2.0}, 0.2: {0: 0.1}}) == 0.1
    assert compare.best_lr({0.1: {0: 1.0}, 0.2: {0: math.inf}}) == 0.1


def test_a_diverging_run_counts_as_infinite():
    row = compare.run_job(compare.Job("charlm-tiny", "torch.optim.SGD", {"momentum": 0.99}, 1e6, 0, 12))
    assert row["held_out"] == math.inf


def test_changed_code_is_run_again():
    """Rows of an older source are not reused; a peer does not depend on our optimizer code."""
    ours, peer = (compare.source_digest("charlm-tiny", name) for name in (OURS[0], "adamw"))
    assert ours != peer
    job = compare.Job("charlm-tiny", OURS[0], {"a": (1, 2)})
    assert f'"{ours}"' in job.key
    assert job.key == compare.Job("charlm-tiny", OURS[0], {"a": [1, 2]}, device="cuda").key


def test_candidate_syntax():
    options = {"betas": (0.5, 0.9), "use_tam": False, "final_clip": math.inf, "rule": "none", "clip": None}
    text = "Name:betas=(.5,.9);use_tam=false;final_clip=inf;rule=none;clip=None"
    assert common.parse_candidate(text) == ("Name", options)
    with pytest.raises(SystemExit, match="key=value"):
        common.parse_candidate("Name:oops")
    with pytest.raises(ImportError, match="no_such_module"):
        common.resolve("no_such_module.Optimizer")
    with pytest.raises(ImportError, match="Automagic_Nothing"):
        common.resolve("Automagic_Nothing")


def test_table_keeps_the_newest_row(tmp_path):
    path = tmp_path / "memory.jsonl"
    row = {"bench": "memory", "optimizer": "adamw", "options": {}, "case": "LoRA r=4", "dtype": "float32"}
    for value in (7.0, 8.0):
        common.append_row(path, {**row, "bytes_per_param": value, "reported": None, **common.environment()})
    printed = table.main([str(path), "--last"])
    assert "8.00 (100.0%)" in printed and "7.00" not in printed


def test_run_all_names_existing_modules(tmp_path):
    for full in (False, True):
        for _, arguments in run_all.commands(full, 1, 1, tmp_path):
            script = common.ROOT / (arguments[0].replace(".", "/") + ".py")
            assert script.exists()


def test_learning_curve_does_not_change_the_run():
    plain, watched = (
        compare.run_job(compare.Job("charlm-tiny", "adamw", {}, 1e-3, 0, 6, evaluations=n)) for n in (0, 3)
    )
    assert "held_out_curve" not in plain
    assert [step for step, _ in watched["held_out_curve"]] == [2, 4, 6]
    assert watched["held_out_curve"][-1][1] == watched["held_out"] == plain["held_out"]
    assert compare.row_key(plain) != compare.row_key(watched)
    old = {name: value for name, value in plain.items() if name != "evaluations"}
    assert compare.row_key(old) == compare.row_key(plain)  # rows from before there were curves
