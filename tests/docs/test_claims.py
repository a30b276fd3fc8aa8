"""Pages with tables made from rows: in step with the rows; the verdicts follow the numbers."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from benchmarks.claim_list import CLAIMS
from benchmarks.common import FAMILY, RESULTS, ROOT, build, parse_candidate
from benchmarks.meters import state_bytes
from benchmarks.rows import Rows
from benchmarks.verdicts import BETTER, FAILS, HOLDS, NOT_MEASURED, PART, Result

from automagic_cameamp.profiles import PROFILES
from benchmarks import ablation, claims, convergence, model_memory, tables, verdicts


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The committed rows and pages, free to be changed."""
    shutil.copytree(RESULTS, tmp_path / "results")
    (tmp_path / "docs" / "evidence").mkdir(parents=True)
    for name in tables.PAGES:
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def fill(folder: Path, *options: str) -> int:
    return tables.main(["--results", str(folder / "results"), "--root", str(folder), *options])


def change(path: Path, field: str, factor: float, **wanted: object) -> None:
    """Multiply a number of all rows that match."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    hit = [row for row in rows if all(row.get(k) == v for k, v in wanted.items())]
    assert hit
    for row in hit:
        row[field] *= factor
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


# ------------------------------------------------------------------------------------------------- pages


def test_pages_are_in_step_with_the_rows() -> None:
    assert tables.main(["--check"]) == 0, "run: python -m benchmarks.tables"


def test_the_readme_shows_the_losses_of_the_guide() -> None:
    rows = [line.split("|") for line in (ROOT / "docs" / "guide.md").read_text("utf-8").splitlines()]
    found = {
        row[1].strip(" `"): (row[3].split()[0], row[5].split()[0])
        for row in rows
        if len(row) == 7 and "lr" not in row[2]
    }
    losses = [found[name] for name in ("adamw", "Automagic_CameAMP", "Automagic_CameAMP8bit")]
    for name in ("README.md", "README.zh-TW.md"):
        text = (ROOT / name).read_text("utf-8")
        for task in range(2):
            assert "| " + " | ".join(loss[task] for loss in losses) + " |\n" in text


def test_a_changed_row_is_seen_and_written(copied: Path) -> None:
    wanted = {"optimizer": "Automagic_CameAMP8bit", "options": {}}
    change(copied / "results" / "memory.jsonl", "bytes_per_param", 2.0, **wanted)
    before = (copied / "docs" / "evidence" / "claims.md").read_text("utf-8")
    assert fill(copied, "--check") == 1
    assert (copied / "docs" / "evidence" / "claims.md").read_text("utf-8") == before  # --check writes nothing
    assert fill(copied) == 0 and fill(copied, "--check") == 0
    assert (copied / "docs" / "evidence" / "claims.md").read_text("utf-8") != before


def test_an_unknown_region_is_an_error() -> None:
    with pytest.raises(SystemExit, match="no such table"):
        tables.filled("<!-- rows: typo -->\n<!-- end of rows -->", Rows(), "en")


def test_every_table_is_used_and_every_region_is_closed() -> None:
    texts = [(ROOT / name).read_text("utf-8") for name in tables.PAGES]
    used = {name for text in texts for name in re.findall(r"<!-- rows: ([\w ]+) -->", text)}
    assert used == set(tables.REGIONS)
    for text in texts:
        assert text.count("<!-- rows: ") == text.count("<!-- end of rows -->")


# ---------------------------------------------------------------------------------------------- verdicts


@pytest.mark.parametrize(
    ("result", "verdict"),
    [
        (verdicts.at_most(0.7, 1.0, "", ""), BETTER),
        (verdicts.at_most(0.8, 1.0, "", ""), HOLDS),
        (verdicts.at_most(1.0, 1.0, "", ""), HOLDS),
        (verdicts.at_most(1.1, 1.0, "", ""), FAILS),
        (verdicts.at_most(math.nan, 1.0, "", ""), FAILS),
        (verdicts.at_most(math.inf, 1.0, "", ""), FAILS),
        (verdicts.at_least(9.0, 10.0, "", ""), FAILS),
        (verdicts.at_least(10.0, 10.0, "", ""), HOLDS),
        (verdicts.at_least(-math.inf, 10.0, "", ""), FAILS),
        (verdicts.in_range(5.0, 10.0, 20.0, "", ""), BETTER),
        (verdicts.in_range(15.0, 10.0, 20.0, "", ""), HOLDS),
        (verdicts.in_range(21.0, 10.0, 20.0, "", ""), FAILS),
        (verdicts.both(Result("a", HOLDS), Result("b", BETTER)), HOLDS),
        (verdicts.both(Result("a", BETTER), Result("b", BETTER)), BETTER),
        (verdicts.both(Result("a", HOLDS), Result("b", FAILS)), PART),
        (verdicts.both(Result("a", FAILS), Result("b", FAILS)), FAILS),
    ],
)
def test_verdicts(result: Result, verdict: str) -> None:
    assert result.verdict == verdict


def test_what_was_not_measured_is_not_judged() -> None:
    missing = verdicts.at_most(None, 1.0, "", "python -m x")
    assert missing.verdict == f"{NOT_MEASURED}: `python -m x`"
    assert verdicts.both(Result("a", HOLDS), missing).verdict.startswith(NOT_MEASURED)


def test_worse_rows_turn_verdicts(copied: Path) -> None:
    """Every claim that rests on a file of rows feels a tenfold value in it, or is not about it."""
    turned = set()
    for name, field in (
        ("memory", "bytes_per_param"),
        ("state_error", "error_percent"),
        ("quant_update_error", "error_percent"),
    ):
        path = copied / "results" / f"{name}.jsonl"
        good = path.read_text()
        change(path, field, 100.0, bench=name)
        for number, claim in enumerate(CLAIMS):
            before, after = claim.measure(Rows()), claim.measure(Rows(copied / "results"))
            if before.verdict in (HOLDS, BETTER, PART) and after.verdict == FAILS:
                turned.add(number)
        path.write_text(good)
    rest_on_rows = {
        number
        for number, claim in enumerate(CLAIMS)
        if claim.source.startswith(("`memory`", "`state_error`", "`quant_update_error`"))
        and claim.measure(Rows()).verdict in (HOLDS, BETTER, PART)
        # Ratios of two rows do not change when both do.
        and not any(w in claim.text for w in ("traffic", "less than the own", "blocks are", "full-size"))
    }
    assert rest_on_rows and rest_on_rows <= turned


def test_claims_are_well_formed() -> None:
    rows = Rows()
    assert {claim.document for claim in CLAIMS} == {"001", "002", "003", "004"}
    for claim in CLAIMS:
        result = claim.measure(rows)
        assert result.verdict.partition(":")[0] in verdicts.VERDICTS
        assert result.measured
        for name in re.findall(r"`(tests/[\w/]+\.py)`", claim.source):
            assert (ROOT / name).is_file(), name
        for name in re.findall(r"^`(\w+)[` ]", claim.source):
            if name not in ("tests", "pyproject"):
                assert (ROOT / "benchmarks" / f"{name}.py").is_file(), name


def test_without_rows_nothing_is_claimed(tmp_path: Path) -> None:
    """With an empty folder of rows, only what other tests hold can hold."""
    for claim in CLAIMS:
        verdict = claim.measure(Rows(tmp_path)).verdict
        if verdict in (HOLDS, BETTER, PART):
            assert claim.source.startswith("`tests/"), claim.text


@pytest.mark.parametrize("name", [candidate for candidate in FAMILY if "profile" not in candidate])
def test_the_optimizers_install_no_hooks(name: str) -> None:
    """Nothing of ours runs in a forward or backward pass."""
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
    optimizer = build(name, model.parameters(), lr=1e-4)
    model(torch.randn(2, 8)).sum().backward()
    optimizer.step()
    for module in model.modules():
        assert not [hooks for key, hooks in vars(module).items() if key.endswith("_hooks") and hooks]
    for p in model.parameters():
        assert not p._backward_hooks and not getattr(p, "_post_accumulate_grad_hooks", None)


# ------------------------------------------------------------------------------------------- convergence


@pytest.mark.parametrize(
    ("target", "steps"), [(5.0, 10), (4.0, 10), (3.0, 15), (2.0, 20), (1.0, math.inf), (2.5, 17.5)]
)
def test_steps_to_a_loss(target: float, steps: float) -> None:
    assert convergence.steps_to([[10, 4.0], [20, 2.0], [30, 3.0]], target) == steps


def test_steps_saved_against_the_baseline_of_the_same_seed(tmp_path: Path) -> None:
    row = {"task": "t", "options": {}, "schedule": "constant", "lr": 1e-3, "date": "1", "bench": "quality"}
    curves = {("adamw", 0): [[10, 3.0], [20, 2.0]], ("adamw", 1): [[10, 3.0], [20, 1.0]]}
    curves |= {("X", 0): [[10, 2.0], [20, 1.5]], ("X", 1): [[10, 3.0], [20, 1.5]]}
    with open(tmp_path / "quality.jsonl", "w") as file:
        for (name, seed), curve in curves.items():
            line = {**row, "optimizer": name, "seed": seed, "held_out_curve": curve, "held_out": curve[-1][1]}
            file.write(json.dumps(line) + "\n")
        # A later run without a curve must not hide the one that has it.
        file.write(json.dumps({**row, "date": "2", "optimizer": "X", "seed": 0, "held_out": 1.5}) + "\n")
    assert convergence.steps_saved(Rows(tmp_path), "t", "X") == [50.0, -math.inf]


# ---------------------------------------------------------------------------------------------- ablation


def test_effects_are_per_seed_and_against_the_base_of_the_same_code(tmp_path: Path) -> None:
    row = {"task": ablation.CATS, "schedule": "constant", "lr": 4e-3, "bench": "quality"}
    lines = []
    for seed in range(3):
        one = {**row, "seed": seed, "optimizer": "Automagic_CameAMP"}
        lines.append({**one, "options": {}, "source": "old", "date": "1", "held_out": 1.0 + seed})
        lines.append({**one, "options": {}, "source": "new", "date": "2", "held_out": 50.0})
        changed = {"options": {"use_tam": False}, "source": "old", "date": "1", "held_out": 1.2 + seed}
        lines.append({**one, **changed})
    (tmp_path / "quality.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tam = next(c for c in ablation.CHANGES["Automagic_CameAMP"] if c.option == "use_tam=false")
    found = ablation.effect(Rows(tmp_path), ablation.CATS, "Automagic_CameAMP", tam)
    assert found is not None and found.reading == "hurts"
    assert found.percent == pytest.approx([10.0] * 3)
    assert ablation.effect(Rows(tmp_path), ablation.CHAR, "Automagic_CameAMP", tam) is None


@pytest.mark.parametrize(
    ("percent", "reading"),
    [
        ([1.0, 2.0, 0.1], "hurts"),
        ([-1.0, -2.0, -0.1], "helps"),
        ([1.0, -1.0, 2.0], "unclear"),
        ([0.0] * 3, "identical"),
    ],
)
def test_reading(percent: list[float], reading: str) -> None:
    assert ablation.Effect(percent, 1.0).reading == reading


def test_every_option_of_the_ablation_is_one_of_its_class() -> None:
    for base, changes in ablation.CHANGES.items():
        for item in changes:
            name, options = parse_candidate(f"{base}:{item.option}")
            build(name, [torch.nn.Parameter(torch.zeros(2, 2))], lr=1e-4, **options)


def test_picture_is_drawn(tmp_path: Path) -> None:
    ablation.picture(Rows(), tmp_path / "ablation.png")
    assert (tmp_path / "ablation.png").read_bytes()[:4] == b"\x89PNG"
    assert (ROOT / "docs" / "images" / "ablation.png").is_file()


# ------------------------------------------------------------------------------------------ model memory


@pytest.mark.parametrize("candidate", [*FAMILY, "Automagic_CameAMP:factored=false;lr_level=distance"])
def test_planned_bytes_are_those_held(candidate: str) -> None:
    """The plan that is added up for large models is what a step really allocates, to the byte."""
    name, options = parse_candidate(candidate)
    shapes = [(64, 96), (64, 96), (16, 320), (320, 16), (8, 8), (96,), (32, 16, 3, 3), (320, 16, 1, 1)]
    planned = model_memory.measure(name, options, tuple(shapes))
    params = [torch.nn.Parameter(torch.full(shape, 0.02)) for shape in shapes]
    optimizer = build(name, params, lr=1e-4, **options)
    for p in params:
        p.grad = torch.linspace(-1, 1, p.numel()).view(p.shape)
    optimizer.step()
    memory = getattr(optimizer.controller, "memory", None)  # one tensor for the whole model, in a state too
    held = sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor) and value is not memory
    )
    assert planned == held <= state_bytes(optimizer)


def test_totals_of_the_models() -> None:
    from benchmarks.models import TRAININGS, count, shapes_of

    for name, (_, total) in TRAININGS.items():
        if "FLUX" not in name:  # seconds
            assert count(shapes_of(name)) == total, name


def test_profiles_of_the_family_are_all_there() -> None:
    assert {parse_candidate(c)[1].get("profile") for c in FAMILY} == {None, *PROFILES}


def test_printed_table_has_every_claim(capsys: pytest.CaptureFixture[str]) -> None:
    assert claims.main([]).count("\n") == len(CLAIMS) + 1
    assert capsys.readouterr().out
