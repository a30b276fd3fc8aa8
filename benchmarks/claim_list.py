"""The list: every number of the four documents, in the documents' order."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from automagic_cameamp import configs
from benchmarks import claims as C
from benchmarks import verdicts as V
from benchmarks.claims import BALANCED, BASE, BASE8, CONTEXT8, EIGHT, IMPROVED, MEMORY, QUALITY, Claim
from benchmarks.rows import Rows
from benchmarks.verdicts import Result

FULL = f"{BASE}:factored=false"
NO_CORRECTION = f"{EIGHT}:error_correction=false"
EXACT = ";optim_bits=32"

MEMORY_ROWS = "`memory`: `memory.jsonl`"
ERROR_ROWS = "`quant_update_error`: rows of that name"
STATE_ROWS = "`state_error`: rows of that name"
CURVES = "`compare --evaluations`, `convergence`: `quality.jsonl`"
QUALITY_ROWS = "`compare`: `quality.jsonl`"
STEP_ROWS = "`step_cpu`: rows of that name"
TRAINING_ROWS = "`training_step`: rows of that name"
MODELS = "`model_memory`: rows of that name"
NO_GPU = "no GPU was at hand"


def same_defaults(config: type, documented: dict[str, object]) -> Callable[[Rows], Result]:
    """The documented defaults against those of the class."""

    def measure(rows: Rows) -> Result:
        ours = {f.name: f.default for f in dataclasses.fields(config)}
        ours |= {name: getattr(config(), name) for name in documented}
        wrong = [f"`{name}={ours[name]}`" for name, value in documented.items() if ours[name] != value]
        text = f"{len(documented) - len(wrong)} of {len(documented)} as documented"
        return Result(text + (f", not {', '.join(wrong)}" if wrong else ""), V.FAILS if wrong else V.HOLDS)

    return measure


def untestable(why: str) -> Callable[[Rows], Result]:
    return lambda rows: V.untestable(why)


def counted(text: str) -> Callable[[Rows], Result]:
    """Held by a test that counts; the test, not this table, decides."""
    return lambda rows: Result(text, V.HOLDS)


def state_of_full_training(rows: Rows) -> Result:
    """A large model whole: state with the smallest profile against Adam's."""
    training = "SDXL U-Net, full"
    adam, ours = (rows.state_bytes(name, training) for name in ("adamw", MEMORY))
    if adam is None or ours is None:
        return V.absent("python -m benchmarks.model_memory")
    text = (
        f"state for the whole SDXL U-Net {ours / 2**30:.1f} GiB (memory_optimized), Adam's {adam / 2**30:.1f}"
    )
    return V.at_most(ours, 0.25 * adam, text, "", better=0.75)


CLAIMS = [
    # 001: the COptim8bit description
    Claim(
        "001",
        "8-bit state needs about 75% less than 32-bit state",
        MEMORY_ROWS,
        C.against_twin(BASE8, BASE, 25),
    ),
    Claim(
        "001",
        "the same, against full-size 32-bit state as the documents describe it (`factored=False`)",
        MEMORY_ROWS,
        C.against_twin(BASE8, FULL, 25),
    ),
    Claim(
        "001",
        "8-bit COptim at about 30% of the 32-bit base class",
        MEMORY_ROWS,
        C.against_twin(CONTEXT8, BASE, 30),
    ),
    Claim("001", "the same, against full-size 32-bit state", MEMORY_ROWS, C.against_twin(CONTEXT8, FULL, 30)),
    Claim(
        "001",
        "needs torch 1.9 and bitsandbytes 0.35",
        "`pyproject.toml`",
        lambda rows: Result("torch 2.6; bitsandbytes is not needed", V.FAILS),
    ),
    Claim(
        "001", "converges 10 to 20% faster than usual optimizers (COptim8bit)", CURVES, C.faster(CONTEXT8, 10)
    ),
    Claim("001", "the same, for the base class", CURVES, C.faster(BASE, 10)),
    Claim(
        "001",
        "final result like or better than usual (COptim8bit)",
        QUALITY_ROWS,
        C.as_good(CONTEXT8, "adamw"),
    ),
    Claim("001", "the same, for the base 8-bit class", QUALITY_ROWS, C.as_good(BASE8, "adamw")),
    Claim(
        "001",
        "defaults: lr 1e-6, warm-up 500, window 100, threshold 0.95, four scales, blocks of 4096",
        "`tests/contextual/test_document.py`",
        same_defaults(
            configs.ContextualConfig8bit,
            {
                "lr": 1e-6,
                "betas": (0.8, 0.99, 0.999),
                "eps": (1e-30, 1e-16, 1e-8),
                "weight_decay": 5e-4,
                "warmup_steps": 500,
                "context_window": 100,
                "edge_threshold": 0.95,
                "adaptation_rate": 0.1,
                "momentum_scales": [1, 5, 10, 25],
                "blocksize": 4096,
            },
        ),
    ),
    Claim(
        "001",
        "large models: lr 1e-4, window 200, threshold 0.9, warm-up 1000; small ones: 1e-3, 50, 0.95",
        "-",
        untestable(f"a question of large models, and {NO_GPU}"),
    ),
    # 002: the _8Bit description
    Claim(
        "002",
        "saves 60 to 75% of the optimizer's memory",
        MEMORY_ROWS,
        C.saving([EIGHT, BALANCED, MEMORY], 60),
    ),
    Claim("002", "the 32-bit class needs 120% of Adam", MEMORY_ROWS, C.share(IMPROVED, 120)),
    Claim("002", "8-bit, careful: 45% of Adam", MEMORY_ROWS, C.share(EIGHT, 45)),
    Claim("002", "8-bit, balanced: 35% of Adam", MEMORY_ROWS, C.share(BALANCED, 35)),
    Claim("002", "8-bit, aggressive: 25% of Adam", MEMORY_ROWS, C.share(MEMORY, 25)),
    *(
        Claim(
            "002",
            f"update error with correction, blocks of {block}: below {limit:g}%",
            ERROR_ROWS,
            C.update_error(f"{EIGHT}:block_size={block}", limit, IMPROVED),
        )
        for block, limit in ((128, 0.5), (256, 1.0), (512, 2.0))
    ),
    Claim(
        "002",
        "update error without correction: 2 to 5% (blocks of 256)",
        ERROR_ROWS,
        C.update_error(f"{EIGHT}:block_size=256;error_correction=false", 5.0, IMPROVED),
    ),
    Claim(
        "002",
        "state error with correction, blocks of 256: below 1%",
        STATE_ROWS,
        C.one_shot("affine+4", 256, 1.0),
    ),
    Claim("002", "state error without correction: at most 5%", STATE_ROWS, C.one_shot("affine", 512, 5.0)),
    *(
        Claim(
            "002",
            f"final accuracy with correction, blocks of {block}: {low:g}% of the exact run's",
            QUALITY_ROWS,
            C.keeps_accuracy(candidate, IMPROVED, low),
        )
        for block, candidate, low in (
            (128, f"{EIGHT}:block_size=128", 99.5),
            (256, EIGHT, 99.0),
            (512, f"{EIGHT}:block_size=512", 98.0),
        )
    ),
    Claim(
        "002",
        "final accuracy without correction: 95 to 97%",
        QUALITY_ROWS,
        C.keeps_accuracy(NO_CORRECTION, IMPROVED, 95.0),
    ),
    Claim(
        "002",
        "quantisation costs less than 1% of accuracy",
        QUALITY_ROWS,
        C.keeps_accuracy(EIGHT, IMPROVED, 99.0),
    ),
    Claim(
        "002",
        "forward and backward pass cost nothing extra",
        "`tests/docs/test_claims.py`",
        counted("no hook on any parameter or module"),
    ),
    Claim(
        "002",
        "the optimizer's step takes 10 to 20% longer than in 32 bits",
        STEP_ROWS,
        C.step_time(EIGHT, IMPROVED, 10, 20),
    ),
    Claim("002", "the same, for the base 8-bit class", STEP_ROWS, C.step_time(BASE8, BASE, 10, 20)),
    Claim("002", "memory traffic 60 to 70% of 32 bits", MEMORY_ROWS, C.traffic),
    Claim("002", "smaller blocks are more precise, larger ones smaller", STATE_ROWS, C.smaller_blocks),
    Claim(
        "002",
        "defaults: lr 1e-6 (1e-7 to 1e-3), warm-up 500, decay 5e-4, blocks 256, sync 100, edge 0.1 and "
        "0.6, frequency 0.05, rank 0.01, emphasis 1.2",
        "`tests/improved/test_interface.py`",
        same_defaults(
            configs.Optimizer8BitConfig,
            {
                "lr": 1e-6,
                "min_lr": 1e-7,
                "max_lr": 1e-3,
                "warmup_steps": 500,
                "weight_decay": 5e-4,
                "block_size": 256,
                "sync_frequency": 100,
                "edge_penalty": 0.1,
                "edge_threshold": 0.6,
                "frequency_penalty": 0.05,
                "rank_penalty_strength": 0.01,
                "low_rank_emphasis": 1.2,
            },
        ),
    ),
    Claim(
        "002",
        "GPUs below 8 and 16 GB, models below 10 M and 100 M, and above: three settings each",
        "`tests/monitor/test_recommend.py`",
        counted("thresholds and settings as documented"),
    ),
    Claim("002", "lets GPUs of 8 to 16 GB train larger models", MODELS, state_of_full_training),
    Claim(
        "002",
        "progressive quantisation after a quarter of the run; finer blocks when the loss rises by 10%",
        "`tests/monitor/test_adapt.py`",
        counted("as documented, and the state is kept"),
    ),
    # 003: the profiles
    Claim(
        "003",
        "values of the three profiles; sizes from 1024 and 4096 elements on",
        "`tests/improved/test_documents.py`",
        counted("as documented; memory_optimized also shares one mask counter per row"),
    ),
    Claim(
        "003",
        "memory_optimized below 8 GB, balanced up to 16 GB, quality_optimized above",
        "`tests/monitor/test_recommend.py`",
        counted("`get_adaptive_config` decides so; whether the results are best so was not tested"),
    ),
    Claim(
        "003",
        "rates of the examples: 1e-4, 2e-4, 8e-5 for LoRA, 5e-6 for DreamBooth",
        "-",
        untestable(NO_GPU),
    ),
    # 004: the _Improved_8Bit description
    Claim("004", "own block code: 25 to 35% of Adam", MEMORY_ROWS, C.share(EIGHT, 35, 25)),
    Claim(
        "004",
        "on bitsandbytes' code: 20 to 30% of Adam (default, balanced)",
        MEMORY_ROWS,
        C.share(BALANCED, 30, 20),
    ),
    Claim("004", "the same, memory_optimized", MEMORY_ROWS, C.share(MEMORY, 30, 20)),
    Claim("004", "10 to 20% less than the own block code", MEMORY_ROWS, C.smaller_than_ours),
    *(
        Claim(
            "004",
            f"update error of {C.short(candidate)}: below {limit:g}%",
            ERROR_ROWS,
            C.update_error(candidate, limit, candidate + EXACT),
        )
        for candidate, limit in ((MEMORY, 1.0), (BALANCED, 0.5), (QUALITY, 0.2))
    ),
    *(
        Claim(
            "004",
            f"final accuracy of {C.short(candidate)}: {low:g}% and more",
            QUALITY_ROWS,
            C.keeps_accuracy(candidate, twin, low),
        )
        for candidate, twin, low in (
            (MEMORY, MEMORY + EXACT, 99.0),
            (BALANCED, IMPROVED, 99.5),
            (QUALITY, QUALITY + EXACT, 99.8),
        )
    ),
    Claim(
        "004",
        "a whole training takes 5 to 15% longer",
        TRAINING_ROWS,
        C.whole_training("Automagic_CameAMP_Improved_8Bit", 5, 15),
    ),
    Claim(
        "004", "the same with the own block code: 10 to 20%", TRAINING_ROWS, C.whole_training(EIGHT, 10, 20)
    ),
    Claim(
        "004",
        "coding 5 to 10%, decoding 3 to 8% (own code 15 to 25%, 10 to 20%); transfers 25 to 30% less",
        "-",
        untestable(f"shares of a GPU step, and {NO_GPU}"),
    ),
    Claim("004", "5 to 15% faster than the own block code on CUDA", "-", untestable(NO_GPU)),
    Claim("004", "CUDA 11, compute capability 7.0, 4 GB; bitsandbytes 0.41", "-", untestable(NO_GPU)),
    Claim(
        "004",
        "below 6 GB, below 12 GB, above: profiles with 8-bit state from 2048, 4096, 8192 elements on",
        "`tests/monitor/test_recommend.py`",
        counted("as documented"),
    ),
    Claim(
        "004",
        "progressive training in 20, 60 and 20% of the epochs; health limits 0.1 to 0.3, 0.8, 0.9",
        "`tests/monitor/test_adapt.py`, `test_health.py`",
        counted("as documented, and the state is kept"),
    ),
    Claim(
        "004",
        "the mask and the progress survive a move from the own code to this class",
        "`tests/checkpoint/test_convert.py`",
        counted("mask and step bit for bit, momentum decoded and coded anew"),
    ),
]
