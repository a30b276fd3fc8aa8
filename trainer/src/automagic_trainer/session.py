"""From settings to a finished folder: train each optimizer, draw, write sheet, report and adapter."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from automagic_cameamp.factory import OptimizerArgumentError, resolve_optimizer

from . import durable
from .data import PictureSet, load
from .errors import TrainingFailed, UserError
from .gallery import CHUNK, Drawing, chosen_targets, make_gallery, write_sheet
from .loop import Run, RunResult, device_of, preflight, train
from .metrics import MetricsFile
from .model import copy_adapter
from .report import write_report
from .settings import FREE_ON_RESUME, TrainSettings, build

RECORD = "session.json"


@dataclasses.dataclass(frozen=True)
class Session:
    """Everything that decides what ends up in the folder `out`."""

    kind: str
    runs: list[TrainSettings]
    prompts: list[str]
    drawing: Drawing

    @property
    def out(self) -> Path:
        """The folder."""
        return Path(self.runs[0].out)

    @property
    def labels(self) -> list[str]:
        """A short name for each run, used in files and tables."""
        return [label_of(s.optimizer) for s in self.runs]


def label_of(optimizer: str) -> str:
    """The class's own spelling; a dotted path keeps its module."""
    try:
        cls = resolve_optimizer(optimizer)
    except OptimizerArgumentError as error:
        raise UserError(str(error)) from None
    module, dot, _ = optimizer.strip().rpartition(".")
    return f"{module}{dot}{cls.__name__}"


def resumed(kind: str, out: Path, asked: dict[str, Any]) -> Session:
    """The session that `out` holds, with those options changed that may change."""
    try:
        record = json.loads((out / RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"--resume: {out} holds no run; leave --resume out to start one") from None
    except (OSError, ValueError) as error:
        raise UserError(f"--resume: cannot read {out / RECORD}: {error}") from None
    if record["kind"] != kind:
        raise UserError(f"--resume: {out} was made by `automagic {record['kind']}`; use that command")
    runs = [_changed(old, asked | {"out": str(out)}) for old in record["runs"]]
    return Session(kind, runs, record["prompts"], Drawing(**record["drawing"]))


def _changed(old: dict[str, Any], asked: dict[str, Any]) -> TrainSettings:
    before, after = build(old, "--resume"), build(old | asked, "--resume")
    for field in dataclasses.fields(TrainSettings):
        was, now = getattr(before, field.name), getattr(after, field.name)
        fixed = field.name not in FREE_ON_RESUME or (field.name == "steps" and before.schedule == "cosine")
        if fixed and was != now:
            raise UserError(
                f"--resume: the run was started with {field.name}={was!r}, now {now!r}; leave it out, "
                f"or start a new run in another --out"
            )
    return after


def prepare(session: Session, *, resume: bool, overwrite: bool) -> PictureSet:
    """Check everything that could stop the session later, then make its folder ready."""
    for settings in session.runs:
        preflight(settings)
    labels = session.labels
    for label in labels:
        if labels.count(label) > 1:
            raise UserError(f"{label} is given twice; name each optimizer once")
    data = load(session.runs[0].data)
    out = session.out
    if not resume and not overwrite and (out / RECORD).exists():
        raise UserError(
            f"{out} already holds a run: add --resume to go on, --overwrite to replace it, "
            "or choose another --out"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not resume:
            (out / RECORD).unlink(missing_ok=True)  # first: half an old run must not look like one
            for folder in ("checkpoints", "adapters"):
                shutil.rmtree(out / folder, ignore_errors=True)
            MetricsFile(out / "metrics.jsonl").clear()
        _write_record(session)
    except OSError as error:
        raise UserError(f"--out {out}: cannot write there: {error.strerror or error}") from None
    return data


def _write_record(session: Session) -> None:
    record = {
        "kind": session.kind,
        "runs": [dataclasses.asdict(s) for s in session.runs],
        "prompts": session.prompts,
        "drawing": dataclasses.asdict(session.drawing),
    }
    text = json.dumps(record, indent=1) + "\n"
    durable.replace(session.out / RECORD, lambda sink: sink.write(text.encode()))


class Watcher:
    """What a session tells about its progress; this one tells nobody."""

    def start(self, name: str, total: int) -> None:
        """A new piece of work of `total` steps begins."""

    def on_row(self, row: Any) -> None:
        """A training step was made."""

    def tick(self) -> None:
        """A step of any other work was made."""

    def say(self, words: str) -> None:
        """One line for the user."""


def run_session(
    session: Session, data: PictureSet, *, title: str, resume: bool, watch: Watcher
) -> list[RunResult]:
    """Train all, then write everything; Stopped passes through when the user presses Ctrl-C."""
    out = session.out
    metrics = MetricsFile(out / "metrics.jsonl")
    results = []
    for settings, label in zip(session.runs, session.labels, strict=True):
        watch.start(label, settings.steps)
        run = Run(settings, data, label, out)
        results.append(train(run, metrics, watch.on_row, resume=resume, say=watch.say))
    try:
        write_outputs(session, data, results, title=title, start=watch.start, tick=watch.tick)
    except OSError as error:
        raise TrainingFailed(
            f"{out}: the pictures and the report cannot be written: {error.strerror or error}; the training "
            "itself is saved: make room and go on with --resume"
        ) from None
    return results


def write_outputs(
    session: Session,
    data: PictureSet,
    results: Sequence[RunResult],
    *,
    title: str,
    start: Callable[[str, int], object],
    tick: Callable[[], object],
) -> None:
    """samples.png, report.html and the last run's adapter."""
    out, how = session.out, session.drawing
    copy_adapter(results[-1].adapter, out / "adapter.safetensors")
    adapters = [(result.label, result.adapter) for result in results]
    chunks = -(-(len(chosen_targets(data)) + len(session.prompts)) // CHUNK)
    start("drawing", how.steps * chunks * (len(adapters) + 1))
    gallery = make_gallery(data, session.prompts, adapters, how, device_of(session.runs[0]), tick)
    write_sheet(gallery, out / "samples.png", title)
    described = {"drawn with": f"DDIM, {how.steps} steps, guidance {how.guidance:g}, seed {how.seed}"}
    write_report(out / "report.html", title, gallery, results, described)
