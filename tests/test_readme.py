"""The documentation is true: its code runs, its commands exist, its links lead somewhere, its twin agrees."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README, TWIN = ROOT / "README.md", ROOT / "README.zh-TW.md"
PAGES = [
    README,
    TWIN,
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "trainer" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
FENCE = re.compile(r"^(?P<mark>`{3,})(?P<info>[^\n`]*)\n(?P<body>.*?)^(?P=mark)[ \t]*$", re.M | re.S)


def blocks(page: Path, language: str | None = None) -> list[tuple[int, str, str]]:
    """(line number, info string, body) of every fenced block, or of those in one language."""
    text = page.read_text("utf-8")
    found = [(text.count("\n", 0, m.start()) + 2, m["info"].strip(), m["body"]) for m in FENCE.finditer(text)]
    return [row for row in found if language is None or row[1] == language]


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text("utf-8"))


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


# The twin's blocks are the README's, character for character (tested below), so they run once.
WITH_PYTHON = [page for page in PAGES if page != TWIN and blocks(page, "python")]


def test_there_is_python_to_run() -> None:
    assert README in WITH_PYTHON


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One namespace per page, blocks in order, in an empty folder: what a reader would do."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for line, _, body in blocks(page, "python"):
        # Padding makes a traceback point at the line of the page.
        exec(compile("\n" * (line - 1) + body, str(page), "exec"), namespace)


def test_no_block_hides_from_the_tests() -> None:
    """A Python block written 'py' or 'python foo' would never run."""
    known = {"python", "bash", "text", "toml", "json", "bibtex", "console", "yaml"}
    known |= {"diff"}  # of CONTRIBUTING.md, applied by tests/docs/test_worked_example.py
    odd = [
        f"{name_of(p)}:{line}: '{info}'" for p in PAGES for line, info, _ in blocks(p) if info not in known
    ]
    assert not odd, f"fenced blocks must be one of {sorted(known)}: {odd}"


# ---------------------------------------------------------------------------------------------- commands


def commands(page: Path) -> list[tuple[int, list[str]]]:
    """The commands of a page's bash blocks as word lists, continuation lines joined, comments dropped."""
    rows = []
    for start, _, body in blocks(page, "bash"):
        joined = re.sub(r"\\\n", " \0", body)
        for offset, line in enumerate(joined.split("\n")):
            skipped = joined.split("\n")[:offset]
            words = shlex.split(line.replace("\0", ""), comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            if words:
                rows.append((start + offset + sum(part.count("\0") for part in skipped), words))
    return rows


ALL_COMMANDS = [(page, line, words) for page in PAGES for line, words in commands(page)]


def named(program: str) -> list[object]:
    return [
        pytest.param(words, id=f"{name_of(page)}:{line}")
        for page, line, words in ALL_COMMANDS
        if words[0] == program
    ]


@pytest.mark.parametrize("words", named("automagic"))
def test_automagic_lines_parse(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Every command line written in the documentation is one that the program accepts."""
    from automagic_cameamp.cli import parser

    try:
        parser().parse_args(words[1:])
    except SystemExit as stop:
        assert stop.code in (0, None), f"{shlex.join(words)}\n{capsys.readouterr().err}"


def test_a_wrong_automagic_line_is_seen() -> None:
    from automagic_cameamp.cli import parser

    for wrong in (["trian"], ["train", "--optimiser", "AdamW"], ["sample"]):
        with pytest.raises(BaseException) as stop:
            parser().parse_args(wrong)
        assert not isinstance(stop.value, SystemExit) or stop.value.code not in (0, None)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("words", named("make"))
def test_make_lines_exist(words: list[str]) -> None:
    done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for word in words[1:]:
        if "=" in word:
            assert re.search(rf"\$\({word.split('=')[0]}\)", makefile), f"the Makefile reads no {word}"


@pytest.mark.parametrize("words", named("pip"))
def test_pip_lines_name_projects_and_extras_that_exist(words: list[str]) -> None:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    for word in words:
        for group in re.findall(r"^(?:\.|automagic-cameamp)\[([\w,-]+)\]", word):
            assert set(group.split(",")) <= set(extras), f"{word}: extras are {sorted(extras)}"
        if word.startswith("."):
            assert (ROOT / word.partition("[")[0] / "pyproject.toml").is_file(), word


def test_scripts_named_exist() -> None:
    named_scripts = [
        (name_of(page), line, word)
        for page, line, words in ALL_COMMANDS
        for word in words[:2]
        if word.endswith((".py", ".sh"))
    ]
    assert named_scripts
    missing = [row for row in named_scripts if not (ROOT / row[2]).is_file()]
    assert not missing


# ------------------------------------------------------------------------------------------------- links

PAGE_NAMED = re.compile(r"\bdocs/[\w./-]+\.md\b")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)|<img[^>]*src=\"([^\"]+)\"")


def anchor(title: str) -> str:
    """The fragment that Markdown viewers make of a heading."""
    kept = re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", title).strip().lower())
    return kept.replace(" ", "-")


def headings(page: Path) -> list[tuple[int, str]]:
    return [(len(m[1]), m[2].strip()) for m in re.finditer(r"^(#{1,6}) (.+)$", prose(page), re.M)]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    dead = []
    for match in LINK.finditer(prose(page)):
        target = match[1] or match[2]
        if re.match(r"[a-z]+:", target):
            continue
        file, _, fragment = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        if not path.exists():
            dead.append(f"{target}: no such file")
        elif (
            fragment
            and path.suffix == ".md"
            and fragment not in {anchor(title) for _, title in headings(path)}
        ):
            dead.append(f"{target}: no such heading")
    assert not dead, "\n".join(dead)


def test_pages_that_the_source_names_exist() -> None:
    """Comments and docstrings point at pages too, and pages move."""
    folders = ("src", "tests", "trainer", "benchmarks", "scripts", "examples")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    named = {(name_of(f), page) for f in files for page in PAGE_NAMED.findall(f.read_text("utf-8"))}
    assert len(named) > 5
    assert not [row for row in named if not (ROOT / row[1]).is_file()]


# -------------------------------------------------------------------------------------------------- twin


def test_the_readme_is_short() -> None:
    assert [page.name for page in (README, TWIN) if len(page.read_text("utf-8").splitlines()) > 150] == []


def test_that_no_gpu_was_seen_stands_on_the_first_screen() -> None:
    """Until a row of the table of hardware says otherwise."""
    for page, words in ((README, "Never run on a GPU"), (TWIN, "從未在 GPU 上執行過")):
        assert any(words in line for line in page.read_text("utf-8").splitlines()[:12])


def test_twin_has_the_same_headings() -> None:
    assert [level for level, _ in headings(README)] == [level for level, _ in headings(TWIN)]


def test_twin_has_the_same_code() -> None:
    assert [row[1:] for row in blocks(README)] == [row[1:] for row in blocks(TWIN)]


def tables(page: Path) -> list[list[list[str]]]:
    """Numbers of every table, cell by cell: the words differ between the languages, the numbers may not."""
    found, current = [], []
    for line in [*prose(page).splitlines(), ""]:
        if line.lstrip().startswith("|"):
            cells = line.strip().strip("|").split("|")
            current.append([" ".join(re.findall(r"\d+(?:[.,]\d+)*", cell)) for cell in cells])
        elif current:
            found.append(current)
            current = []
    return found


def test_twin_has_the_same_numbers_in_tables() -> None:
    assert tables(README)
    assert tables(README) == tables(TWIN)


def test_twin_has_the_same_citations_and_links() -> None:
    ids = [set(re.findall(r"\b\d{4}\.\d{5}\b", page.read_text("utf-8"))) for page in (README, TWIN)]
    assert ids[0] and ids[0] == ids[1]
    links = [
        sorted(
            {t for m in LINK.finditer(prose(p)) if (t := m[1] or m[2]) and not t.startswith(("#", "README"))}
        )
        for p in (README, TWIN)
    ]
    assert links[0] == links[1]
