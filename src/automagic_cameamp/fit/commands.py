"""The command line, or the lines of Python, that run a row. Read in the trainers' sources, not run here.

kohya-ss/sd-scripts 48d368f, kohya-ss/musubi-tuner 30c658c, diffusers 0.42, transformers 5.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from automagic_cameamp import OPTIMIZERS

from .answer import Answer, Row
from .candidates import has_option
from .models import DTYPES

LAUNCH = "python -m automagic_cameamp.kohya"
# family -> (script of a whole model, script of an adapter, kohya's network, what else it wants)
SD_SCRIPTS: dict[str, tuple[str, str, str, str]] = {
    "sd": ("train_db.py", "train_network.py", "networks.lora", ""),
    "sdxl": ("sdxl_train.py", "sdxl_train_network.py", "networks.lora", ""),
    "sd3": (
        "sd3_train.py",
        "sd3_train_network.py",
        "networks.lora_sd3",
        "--clip_l=CLIP_L --clip_g=CLIP_G --t5xxl=T5",
    ),
    "flux": (
        "flux_train.py",
        "flux_train_network.py",
        "networks.lora_flux",
        "--clip_l=CLIP_L --t5xxl=T5 --ae=AE",
    ),
}
MUSUBI: dict[str, tuple[str, str, str, str]] = {
    "zimage": ("zimage_train.py", "zimage_train_network.py", "networks.lora_zimage", ""),
    "qwen_image": ("qwen_image_train.py", "qwen_image_train_network.py", "networks.lora_qwen_image", ""),
    "wan": ("", "wan_train_network.py", "networks.lora_wan", "--task={task}"),
}
WAN = {"wan21-1.3b": "t2v-1.3B", "wan21-14b": "t2v-14B", "wan22-14b": "t2v-A14B"}
# sd-scripts' own way to step inside backward with any optimizer: it frees gradients group by group.
GROUPED = {
    "sdxl": "--fused_optimizer_groups=10",
    "sd3": "--blockwise_fused_optimizers",
    "flux": "--blockwise_fused_optimizers",
}
RATES = {"full": "5e-6", "lora": "1e-4", "lokr": "1e-4"}
PATHS = {
    "AdamW": ("torch.optim", "AdamW"),
    "AdamW8bit": ("bitsandbytes.optim", "AdamW8bit"),
    "Adafactor": ("transformers", "Adafactor"),
    "Prodigy": ("prodigyopt", "Prodigy"),
}


def command(answer: Answer, row: Row) -> str:
    """What runs this row: one line for sd-scripts or musubi-tuner, else lines of Python."""
    q, family = answer.question, answer.spec.family
    known = SD_SCRIPTS.get(family) or MUSUBI.get(family)
    task = WAN.get(answer.spec.name)
    unknown = known is None or (family == "wan" and task is None) or q.base == "nf4" or q.accumulation > 1
    if unknown or not _shell(answer, row):
        return _python(answer, row)
    assert known is not None
    whole, adapter, network, more = known
    ours = row.optimizer.startswith("Automagic")
    words = [LAUNCH if ours else "python", whole if q.train == "full" else adapter]
    if family in SD_SCRIPTS:
        size = f"{answer.batch.width},{answer.batch.height}"
        words += [
            "--pretrained_model_name_or_path=MODEL",
            more,
            "--train_data_dir=PICTURES",
            f"--resolution={size}",
        ]
        words += [f"--train_batch_size={q.batch}", "--cache_latents"]
        words += [] if family == "sd" else ["--cache_text_encoder_outputs"]
    else:
        words += ["--dit=MODEL", more.format(task=task), "--dataset_config=DATA.toml", "--sdpa"]
    words += ["--mixed_precision=" + (q.compute or ("bf16" if q.weights == "fp32" else q.weights))]
    words += ["--gradient_checkpointing"] if q.checkpointing else []
    words += [f"--blocks_to_swap={q.swap}"] if q.swap else []
    if q.train == "full":
        words += [f"--full_{q.weights}"] if q.weights != "fp32" else []
    else:
        kind = q.train == "lora"
        words += [
            f"--network_module={network if kind else 'lycoris.kohya'}",
            "--network_train_unet_only" if family in SD_SCRIPTS else "",
        ]
        words += (
            [f"--network_dim={q.rank}"]
            if kind
            else ["--network_dim=100000", f"--network_args algo=lokr factor={q.factor}"]
        )
        words += ["--fp8_base"] if q.base == "fp8" else []
    return " ".join(filter(None, [*words, *_optimizer(answer, row)]))


def note(answer: Answer, row: Row) -> str:
    """What differs between the row and its command, or nothing."""
    flag = GROUPED.get(answer.spec.family, "")
    if not flag or flag not in command(answer, row):
        return ""
    group = answer.trace.gradients / 10
    if "groups" not in flag:
        group = max(map(max, answer.trace.blocks))
    return (
        f"sd-scripts frees gradients by groups, each with an optimizer of its own: up to "
        f"{group / 2**30:.2f} GiB of gradients at a time in place of {row.gradients / 2**30:.2f}. By tensor, "
        "in Python: release_gradients."
    )


def _shell(answer: Answer, row: Row) -> bool:
    """Whether a command line can say it."""
    q, family = answer.question, answer.spec.family
    if q.train == "full" and (family == "wan" or (family == "sd" and q.weights == "bf16")):
        return False
    if "release" not in row.way or row.optimizer == "Adafactor":
        return True
    return family in GROUPED and q.train == "full"


def _optimizer(answer: Answer, row: Row) -> list[str]:
    q = answer.question
    name, options = parts(row)
    rate = RATES[q.train]
    if not row.optimizer.startswith("Automagic"):
        fixed = {"Adafactor": "--optimizer_args relative_step=False scale_parameter=False warmup_init=False"}
        words = [
            f"--optimizer_type={name}",
            fixed.get(name, ""),
            f"--learning_rate={1 if name == 'Prodigy' else rate}",
        ]
        return words + (["--fused_backward_pass"] if row.way == "release" else [])
    if "profile" in options and not has_option(name, "profile"):
        name = f"automagic_cameamp.{options.pop('profile')}.{name}"
    options["lr"] = rate
    if "offload" in row.way:
        options["offload"] = "cpu"
    words = [f"--optimizer_type={name}", "--optimizer_args", *(f"{k}={v}" for k, v in options.items())]
    return words + ([GROUPED[answer.spec.family]] if "release" in row.way else [])


def parts(row: Row) -> tuple[str, dict[str, Any]]:
    """Name and options of a row's label."""
    name, *words = row.optimizer.split()
    return name, dict(w.split("=", 1) if "=" in w else ("profile", w) for w in words)  # type: ignore[misc]


def _layers(answer: Answer) -> list[str]:
    """Last parts of the names of the layers that have an adapter, as PEFT wants them."""
    found = []
    for t in answer.trace.trained:
        *path, last, _ = t.name.split(".")
        found.append(f"{path[-1]}.{last}" if last.isdigit() and path else last)
    return sorted(set(found))


def _python(answer: Answer, row: Row) -> str:
    q, spec = answer.question, answer.spec
    name, options = parts(row)
    ours, text = name in OPTIMIZERS, spec.library == "transformers"
    module, cls = ("automagic_cameamp", name) if ours else PATHS[name]
    lines = ["import torch"]
    if ours and "profile" in options and not has_option(name, "profile"):
        module += f".{options.pop('profile')}"
    dtype = f"torch.{str(DTYPES[q.weights])[6:]}"
    load = "AutoModelForCausalLM" if text else spec.cls
    release = ours and "release" in row.way
    where = "" if text else f"subfolder={'unet' if 'UNet' in load else 'transformer'!r}, "
    key = "dtype" if text else "torch_dtype"
    nf4 = ["BitsAndBytesConfig"] if q.base == "nf4" else []
    lines += [f"from {spec.library} import {', '.join([load, *nf4])}", f"from {module} import {cls}"]
    lines += ["from automagic_cameamp import release_gradients"] if release else []
    quantised = ""
    if nf4:
        lines += ["nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type='nf4',"]
        lines += [f"    bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype={dtype})"]
        quantised = ", quantization_config=nf4"
    lines += [f"model = {load}.from_pretrained(MODEL, {where}{key}={dtype}{quantised}).train()"]
    lines += [] if nf4 else ["model.to('cuda')"]
    if q.train != "full":
        kind = (
            f"LoraConfig(r={q.rank}, "
            if q.train == "lora"
            else f"LoKrConfig(decompose_factor={q.factor}, r=100000, "
        )
        lines += [f"from peft import {kind.partition('(')[0]}, get_peft_model", "model.requires_grad_(False)"]
        lines += [
            f"adapter = {kind}target_modules={_layers(answer)!r})",
            "model = get_peft_model(model, adapter)",
        ]
    if q.checkpointing:
        lines += [f"model.{'gradient_checkpointing_enable' if text else 'enable_gradient_checkpointing'}()"]
    words = {"lr": 1.0 if name == "Prodigy" else float(RATES[q.train]), **options}
    words |= {"relative_step": False, "scale_parameter": False} if name == "Adafactor" else {}
    words |= {"offload": "cpu"} if "offload" in row.way else {}
    given = ", ".join(f"{k}={v!r}" for k, v in words.items())
    lines += [
        "trained = [p for p in model.parameters() if p.requires_grad]",
        f"optimizer = {cls}(trained, {given})",
    ]
    lines += ["handle = release_gradients(model, optimizer)"] if release else []
    what = "model(**batch).loss" if text else "loss_of(model, batch)  # your own"
    guard = f"with torch.autocast('cuda', {str(q.autocast)}): " if q.autocast else ""
    lines += ["for i, batch in enumerate(batches):", f"    {guard}loss = {what}"]
    lines += [f"    (loss / {q.accumulation}).backward()" if q.accumulation > 1 else "    loss.backward()"]
    every = f"if (i + 1) % {q.accumulation} == 0: " if q.accumulation > 1 else ""
    return "\n".join([*lines, f"    {every}optimizer.step(); optimizer.zero_grad()"])


def to_dict(answer: Answer) -> dict[str, Any]:
    """Plain numbers and words, for JSON; every row with its command."""
    chosen = answer.recommended()
    return {
        "question": asdict(answer.question),
        "model": {"title": answer.spec.title, "source": answer.spec.source},
        "trained_parameters": sum(math.prod(t.shape) for t in answer.trace.trained),
        "rows": [{**row._asdict(), "command": command(answer, row)} for row in answer.rows],
        "recommended": None if chosen is None else {"optimizer": chosen.optimizer, "way": chosen.way},
        "assumptions": answer.assumptions(),
    }
