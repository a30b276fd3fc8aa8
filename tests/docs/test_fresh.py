"""`scripts/fresh.py`: it finds the commands of the pages, and each of them was run."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def fresh() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fresh", ROOT / "scripts" / "fresh.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_documented_command_was_run_and_worked(fresh: ModuleType) -> None:
    rows = [
        json.loads(line)
        for line in (ROOT / "benchmarks/results/commands.jsonl").read_text("utf-8").splitlines()
    ]
    last = {row["command"]: row for row in rows}
    documented = [command for page in fresh.PAGES for command in fresh.commands(page)]
    assert len(documented) > 40
    assert set(documented) - last.keys() == set(), (
        "run `python scripts/fresh.py FOLDER --page ...`, add its rows"
    )
    for command in documented:
        row = last[command]
        assert row.get("rc") == 0 or row["not run"] == fresh.NOT[command], row


def test_comments_and_other_blocks_are_no_commands(
    fresh: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    page = "```bash\n# nothing\nmake demo   # a model\n\necho '#1'\n```\n"
    page += "```python\nmake = 1\n```\n```text\nmake no\n```\n"
    (tmp_path / "page.md").write_text(page, "utf-8")
    monkeypatch.setattr(fresh, "ROOT", tmp_path)
    assert fresh.commands("page.md") == ["make demo", "echo '#1'"]


def test_what_is_a_readers_own_is_filled_in(fresh: ModuleType) -> None:
    assert (
        fresh.filled("automagic fit --model my_model/transformer/config.json")
        == "automagic fit --model my_model/config.json"
    )
    shown = "python -m automagic_cameamp.kohya --show train_network.py"
    assert fresh.filled(shown.replace("--show ", "")) == fresh.filled(shown) == shown


def test_a_command_that_hangs_or_fails_is_told(fresh: ModuleType, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    clone.mkdir()
    assert fresh.run("echo one; echo two; exit 3", clone, {"PATH": "/bin:/usr/bin"}, 20)[::2] == (3, "two")
    assert fresh.run("sleep 30", clone, {"PATH": "/bin:/usr/bin"}, 0.3)[::2] == (124, "too long")
    serving = "print('at http://127.0.0.1:8', flush=True); import time; time.sleep(30)"
    serve = f'{sys.executable} -c "{serving}" --serve'
    assert fresh.run(serve, clone, {"PATH": "/bin:/usr/bin"}, 20)[::2] == (0, "served")
