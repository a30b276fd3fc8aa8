"""Does `automagic fit` say what is really allocated? Small models, trained for three steps on the CPU.

    python -m benchmarks.fit_check

What is said comes from fake tensors; what is found, from the events of torch's profiler, which sees every
call of torch's CPU allocator, inside kernels too. State is counted from the tensors that the optimizer holds.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from automagic_cameamp.fit import adapters, answer, candidates, inputs, models
from automagic_cameamp.state import chunks
from benchmarks.common import RESULTS, append_row, argument_parser, environment, markdown, resolve
from benchmarks.meters import state_bytes

MIB = 2**20
UNET = {"block_out_channels": [64, 128], "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"]}
UNET |= {
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "cross_attention_dim": 64,
    "attention_head_dim": 4,
}
FLUX = {"num_layers": 2, "num_single_layers": 4, "num_attention_heads": 4, "joint_attention_dim": 128}
FLUX |= {"pooled_projection_dim": 64, "attention_head_dim": 64, "axes_dims_rope": [16, 24, 24]}
SD3 = {"num_layers": 4, "num_attention_heads": 4, "joint_attention_dim": 128, "caption_projection_dim": 256}
SD3 |= {"pooled_projection_dim": 64, "sample_size": 32, "pos_embed_max_size": 32, "qk_norm": "rms_norm"}
WAN = {"num_attention_heads": 4, "attention_head_dim": 64, "num_layers": 4, "ffn_dim": 1024, "text_dim": 128}
LLAMA = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 6, "num_attention_heads": 8}
LLAMA |= {"num_key_value_heads": 4, "vocab_size": 2000, "model_type": "llama"}
MODELS: dict[str, dict[str, Any]] = {
    "U-Net": {"_class_name": "UNet2DConditionModel", **UNET},
    "FLUX": {"_class_name": "FluxTransformer2DModel", **FLUX},
    "SD 3": {"_class_name": "SD3Transformer2DModel", **SD3},
    "Wan": {"_class_name": "WanTransformer3DModel", **WAN},
    "Llama": LLAMA,
}
FOUND = {"AdamW": "adamw-foreach", "AdamW8bit": "bnb-adamw8bit", "Adafactor": "transformers.Adafactor"}
FIXED = {"Adafactor": {"relative_step": False, "scale_parameter": False}}


class Case(NamedTuple):
    """A model, how it is trained, and an optimizer used in one way."""

    model: str
    optimizer: str
    way: str = "plain"
    options: dict[str, Any] = {}


EIGHT = "Automagic_CameAMP8bit"
SMALL = "Automagic_CameAMP_Improved_8Bit:profile=memory_optimized"
FULL = {"train": "full", "checkpointing": False, "batch": 2}
CASES = [
    Case("U-Net", "AdamW", "plain", {**FULL, "weights": "fp32", "compute": "fp32", "resolution": 256}),
    Case("U-Net", EIGHT, "plain", {**FULL, "resolution": 256}),
    Case("U-Net", EIGHT, "release", {**FULL, "checkpointing": True, "resolution": 256}),
    Case("FLUX", "AdamW8bit", "plain", {**FULL, "resolution": 256}),
    Case("FLUX", SMALL, "release", {**FULL, "resolution": 512, "checkpointing": True}),
    Case("FLUX", EIGHT, "plain", {"train": "lora", "rank": 16, "batch": 2, "resolution": 512}),
    Case("SD 3", "Automagic_CameAMP", "plain", {**FULL, "resolution": 256}),
    Case("SD 3", "Adafactor", "plain", {**FULL, "resolution": 256}),
    Case("Wan", EIGHT, "release", {**FULL, "resolution": 256, "frames": 9}),
    Case("Wan", SMALL, "plain", {"train": "lokr", "resolution": 256, "frames": 9, "checkpointing": False}),
    Case("Llama", "AdamW", "plain", {**FULL, "tokens": 256}),
    Case("Llama", EIGHT, "release", {**FULL, "tokens": 256, "checkpointing": True}),
    Case("Llama", "Automagic_CameAMP_COptim8bit", "plain", {**FULL, "tokens": 256, "weights": "fp32"}),
]


def said(case: Case, path: Path) -> answer.Row:
    """The row of `automagic fit`."""
    found = answer.fit(str(path), optimizers=(case.optimizer,), **{"train": "full", **case.options})
    return next(row for row in found.rows if row.way == case.way)


def found(case: Case, path: Path) -> dict[str, int]:
    """Bytes of weights and state, and the most that a step allocates beside them."""
    question = answer.Question(str(path), **{"train": "full", **case.options})
    spec = models.find(str(path))
    dtype = models.DTYPES[question.weights]
    torch.manual_seed(0)
    net = models.build(spec, dtype)
    if question.train != "full":
        trained = models.DTYPES[question.trained or "fp32"]
        adapters.adapt(net, question.train, question.size, trained, question.base)
    if question.checkpointing:
        answer.checkpoint(net, spec)
    candidate = candidates.parse(case.optimizer)
    cls, fixed = resolve(FOUND.get(candidate.name, candidate.name))
    options = {**fixed, **dict(candidate.options), **FIXED.get(candidate.name, {})}
    if candidate.ours:
        options["engine"] = "reference"  # what a GPU does without a compiler
    optimizer: Any = cls([p for p in net.parameters() if p.requires_grad], lr=1e-4, **options)
    if case.way == "release":
        optimizer.release_gradients(net)
    loss = inputs.loss_of(spec, question.sample(spec), dtype)
    for _ in range(2):
        train(net, optimizer, loss, question.autocast)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        train(net, optimizer, loss, question.autocast)
    return {"weights": bytes_of(net), "state": state_bytes(optimizer), "beside": highest(profiler)}


def train(net: nn.Module, optimizer: Any, loss: Any, autocast: torch.dtype | None) -> None:
    with torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=autocast is not None):
        value: Tensor = loss(net)
    value.backward()
    del value
    optimizer.step()
    optimizer.zero_grad()


def bytes_of(net: nn.Module) -> int:
    held = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for t in [*net.parameters(), *net.buffers()]
    }
    return sum(held.values())


def highest(profiler: Any) -> int:
    """Most bytes that were allocated and not yet freed, of those allocated while the profiler watched."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text("utf-8"))["traceEvents"]
    memory = [e for e in events if e.get("name") == "[memory]" and e["args"].get("Device Type") == 0]
    live, peak, known = 0, 0, {}
    for event in sorted(memory, key=lambda e: e["args"].get("Ev Idx", 0)):
        size, address = event["args"]["Bytes"], event["args"]["Addr"]
        if size > 0:
            known[address] = size
            live += size
        else:
            live -= known.pop(address, 0)  # what was there before is not counted
        peak = max(peak, live)
    return peak


def newest(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last row of every case."""
    return list({json.dumps([r[k] for k in Case._fields], sort_keys=True): r for r in rows}.values())


def table(rows: list[dict[str, Any]]) -> str:
    body = []
    for r in rows:
        real = r["weights"] + r["state"] + r["beside"]
        how = ", ".join(f"{k}={v}" for k, v in r["options"].items() if k not in ("train", "batch"))
        error = f"{100 * (r['said'] / real - 1):+.1f}%"
        name = f"`{r['optimizer'].replace(':profile=', '` ')}" + ("" if ":" in r["optimizer"] else "`")
        body.append(
            [
                r["model"],
                r["options"]["train"],
                how,
                name,
                r["way"],
                f"{r['said'] / MIB:.1f}",
                f"{real / MIB:.1f}",
                error,
            ]
        )
    header = ["small", "train", "options", "optimizer", "way", "said, MiB", "allocated, MiB", "difference"]
    return markdown(header, body)


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argument_parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="two cases: a smoke test")
    parser.add_argument("--out", type=Path, default=RESULTS / "fit_check.jsonl")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    chunks.CPU_CHUNK_ELEMENTS = chunks.DEVICE_CHUNK_ELEMENTS  # as large stacks as on a GPU
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES[-2:] if args.quick else CASES:
            path = Path(folder) / "config.json"
            path.write_text(json.dumps(MODELS[case.model]), "utf-8")
            row = {"bench": "fit_check", **case._asdict(), "said": said(case, path).peak, **found(case, path)}
            rows.append({**row, **environment()})
            append_row(args.out, rows[-1])
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    print(table(rows))
    return rows


if __name__ == "__main__":
    main()
