"""examples/demo.ipynb runs from top to bottom, and holds what it drew when it was committed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "examples" / "demo.ipynb"


@pytest.mark.timeout(600)
def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps for each optimizer; everything else as a reader has it."""
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("AUTOMAGIC_NOTEBOOK_STEPS", "2")
    monkeypatch.delenv("MPLBACKEND", raising=False)  # plots are to come out of the cells
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT / "src", ROOT / "trainer" / "src"))))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    where = {"metadata": {"path": str(tmp_path)}}
    client.NotebookClient(notebook, timeout=500, kernel_name="python3", resources=where).execute()
    assert (tmp_path / "runs" / "notebook" / "adapter.safetensors").is_file()
    committed = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    for new, old in zip(notebook.cells, committed, strict=True):
        kinds = [
            {o["output_type"] for o in c.get("outputs", []) if o.get("name") != "stderr"} for c in (new, old)
        ]
        assert kinds[0] == kinds[1], new["source"][:60]


def test_it_was_committed_whole() -> None:
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    outputs = [o for cell in cells for o in cell.get("outputs", [])]
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 4
    assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]
    assert "AUTOMAGIC_NOTEBOOK_STEPS" in "".join(cells[1]["source"])
    assert NOTEBOOK.stat().st_size < 600_000


def test_the_place_of_an_address_is_held_here_alone() -> None:
    """docs/releasing.md says that `OWNER` stands in the notebook, twice, and nowhere else."""
    assert NOTEBOOK.read_text("utf-8").count("OWNER/automagic") == 2
    folders = ("docs", "src", "trainer", "scripts", "examples", ".github")
    files = [
        p
        for folder in folders
        for p in (ROOT / folder).rglob("*")
        if p.suffix in (".md", ".py", ".yml", ".toml")
    ]
    others = [
        p for p in [*ROOT.glob("*.md"), *ROOT.glob("*.toml"), *ROOT.glob("*.yml"), *files] if p.is_file()
    ]
    assert len(others) > 100
    assert not [p for p in others if "OWNER/automagic" in p.read_text("utf-8", "replace")]
