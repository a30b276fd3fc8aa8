"""``OptimizerInfo`` entries of the seven classes, in the form of torch's own database of optimizers."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    ExponentialLR,
    LinearLR,
    PolynomialLR,
    ReduceLROnPlateau,
    StepLR,
)

from automagic_cameamp import OPTIMIZERS

with warnings.catch_warnings():  # what torch's test utilities say while they are imported is not ours
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_optimizers import (
        ErrorOptimizerInput,
        OptimizerErrorEnum,
        OptimizerInfo,
        OptimizerInput,
        get_error_inputs_for_all_optims,
    )

# Rates that move a tiny problem within twenty steps.
QUICK: dict[str, Any] = {"lr": 5e-3, "max_lr": 0.1, "warmup_steps": 8}
OWN: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "Automagic_CameAMP8bit": [("softsign code", {"state_code": "softsign", "blocksize": 64})],
    "Automagic_CameAMP_COptim": [("one momentum", {"momentum_scales": None})],
    "Automagic_CameAMP_COptim8bit": [("block size", {"blocksize": 64})],
    "Automagic_CameAMP_Improved": [("refreshed often", {"sync_frequency": 2})],
    "Automagic_CameAMP_8Bit": [("eight error bits", {"error_bits": 8})],
    "Automagic_CameAMP_Improved_8Bit": [("everything in 8 bits", {"min_8bit_size": 1})],
}


def _inputs(name: str) -> Any:
    def inputs(device: Any, dtype: Any = None) -> list[OptimizerInput]:
        shared = [
            ("default", {}),
            ("non-default lr", {"lr": 1e-2}),
            ("nonzero weight_decay", {"weight_decay": 0.1, "weight_decay_phase": "always"}),
            ("without a mask", {"use_lr_mask": False, "weight_decay": 0.0}),
            ("AdaBelief, full moments", {"came": False, "factored": False}),
            ("Tensor lr", {"lr": torch.tensor(5e-3)}),
        ]
        if "weight_decay_phase" not in OPTIMIZERS[name].config_class.__dataclass_fields__:  # type: ignore[attr-defined]
            shared[2] = ("nonzero weight_decay", {"weight_decay": 0.1})
        return [
            OptimizerInput(params=None, kwargs={**QUICK, **kwargs}, desc=desc)  # type: ignore[arg-type]
            for desc, kwargs in [*shared, *OWN.get(name, [])]
        ]

    return inputs


def _errors(device: Any, dtype: Any) -> list[ErrorOptimizerInput]:
    """torch's errors for every optimizer, and ours for the arguments that torch's optimizers have too."""
    p = torch.nn.Parameter(torch.ones(2, 2, device=device, dtype=dtype))
    z = torch.nn.Parameter(torch.ones(2, 2, device=device, dtype=torch.complex64))
    sparse = torch.nn.Parameter(torch.ones(2, 2, device=device, dtype=dtype))
    sparse.grad = torch.ones_like(sparse).to_sparse()

    def wrong(kwargs: dict[str, Any], regex: str, params: Any = (p,), **more: Any) -> ErrorOptimizerInput:
        made = OptimizerInput(params=list(params), kwargs=kwargs, desc=regex)
        return ErrorOptimizerInput(made, **{"error_type": ValueError, "error_regex": regex, **more})

    at_step = {"error_on": OptimizerErrorEnum.STEP_ERROR, "error_type": RuntimeError}
    torchs = get_error_inputs_for_all_optims(device, dtype)
    for found in torchs:  # their lr=1e-2 lies above our default max_lr, which we warn about
        found.optimizer_error_input.kwargs.setdefault("max_lr", 0.1)
    return [
        *torchs,
        wrong({"lr": -1.0}, "lr=-1.0 is not allowed"),
        wrong({"betas": (1.0, 0.9)}, r"betas\[0\]=1.0 is not allowed"),
        wrong({"weight_decay": -1.0}, "weight_decay=-1.0 is not allowed"),
        wrong({"eps": -1e-8}, "eps.*is not allowed"),
        wrong({}, r"complex parameter .* Train .*torch.view_as_real", [z]),
        wrong({}, "only dense gradients are supported", [sparse], **at_step),
        wrong({"lrr": 1e-3}, "lrr", error_type=TypeError),
    ]


def _schedulers() -> list[list[Any]]:
    return [
        [lambda o: StepLR(o, gamma=0.9, step_size=10)],
        [lambda o: LinearLR(o, start_factor=0.4, total_iters=4)],
        [lambda o: ConstantLR(o, factor=0.4, total_iters=4)],
        [lambda o: StepLR(o, gamma=0.9, step_size=10), lambda o: ReduceLROnPlateau(o)],
        [lambda o: ExponentialLR(o, gamma=0.99), lambda o: ReduceLROnPlateau(o)],
        [lambda o: PolynomialLR(o, power=0.9, total_iters=40)],
        [lambda o: CosineAnnealingLR(o, 40)],
    ]


OPTIM_DB: list[Any] = [
    OptimizerInfo(
        cls,  # type: ignore[arg-type]
        optim_inputs_func=_inputs(name),
        optim_error_inputs_func=_errors,
        scheduler_inputs=_schedulers(),  # type: ignore[arg-type]
        supported_impls=(),
        not_og_supported_flags=(),
        supports_sparse=False,
        has_capturable_arg=False,
        supports_complex=False,
    )
    for name, cls in OPTIMIZERS.items()
]
