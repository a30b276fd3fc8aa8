"""Keywords of other optimizers: which of them say what holds here anyway, and why the others do not exist."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any, NamedTuple

from .text import read


class Keyword(NamedTuple):
    """A keyword that some other optimizer has.

    Args:
        holds: the truth value that says what is so here, and is therefore accepted; None: no value is.
        reason: why there is no such option.
        advice: what to do.
    """

    holds: bool | None
    reason: str
    advice: str


_TOGETHER = "all parameters are updated together already, by the fastest engine there is"
_DECAY = "weight decay never enters the gradient"
_OUTSIDE = "gradients are clipped outside of optimizers"
_ADAFACTOR = "it is Adafactor's; the rate comes from lr and your scheduler, and the mask's mean is 1"
_PRODIGY = "it is Prodigy's"
KEYWORDS = {
    "fused": Keyword(False, _TOGETHER, "Leave it out."),
    "foreach": Keyword(False, _TOGETHER, "Leave it out."),
    "amsgrad": Keyword(
        False, "no running maximum of second moments is kept", "Leave it out, or use torch.optim.AdamW."
    ),
    "maximize": Keyword(False, "every step goes down", "Negate the loss."),
    "capturable": Keyword(
        False, "steps are counted on the host, which a captured CUDA graph would not repeat", "Leave it out."
    ),
    "differentiable": Keyword(
        False, "no gradient is kept through a step", "Leave it out, or use torch.optim.AdamW."
    ),
    "nesterov": Keyword(False, "momentum has no look-ahead", "Leave it out."),
    "decouple": Keyword(True, _DECAY, "Leave it out."),
    "decoupled_weight_decay": Keyword(True, _DECAY, "Leave it out."),
    "weight_decouple": Keyword(True, _DECAY, "Leave it out."),
    "adam_w_mode": Keyword(True, _DECAY, "Leave it out."),
    "relative_step": Keyword(False, _ADAFACTOR, "Pass lr and use a scheduler."),
    "scale_parameter": Keyword(False, _ADAFACTOR, "Pass lr; small rows gain with full_finetune=False."),
    "decay_rate": Keyword(None, "the decay of the second moment is betas[1]", "Leave it out, or set betas."),
    "warmup_init": Keyword(False, _ADAFACTOR, "Pass lr and warm up with a scheduler."),
    "d0": Keyword(None, _PRODIGY, "Leave it out: it is 1e-6, or an lr up to 1e-5 beside lr_level='auto'."),
    "growth_rate": Keyword(None, _PRODIGY, "Pass max_lr: it caps every rate."),
    "use_bias_correction": Keyword(False, _PRODIGY, "Leave it out."),
    "safeguard_warmup": Keyword(False, _PRODIGY, "Leave it out."),
    "fsdp_in_use": Keyword(False, "sharded parameters are recognised by themselves", "Leave it out."),
    "slice_p": Keyword(None, _PRODIGY, "lr_level='auto' always looks at a part of the weights."),
    "use_triton": Keyword(False, "there is no such kernel", "Leave it out."),
    "block_wise": Keyword(True, "codes are always in blocks", "Leave it out, or set blocksize."),
    "is_paged": Keyword(False, "state is paged by nobody", "Pass offload='cpu' to hold it in host memory."),
    "paged": Keyword(False, "state is paged by nobody", "Pass offload='cpu' to hold it in host memory."),
    "momentum": Keyword(None, "the decay of the momentum is betas[0]", "Pass betas=(momentum, 0.99, 0.999)."),
    "dampening": Keyword(None, "momentum is an average", "Leave it out."),
    "beta1": Keyword(None, "the three decays are one option", "Pass betas=(beta1, beta2, beta3)."),
    "beta2": Keyword(None, "the three decays are one option", "Pass betas=(beta1, beta2, beta3)."),
    "beta3": Keyword(None, "the three decays are one option", "Pass betas=(beta1, beta2, beta3)."),
    "max_grad_norm": Keyword(None, _OUTSIDE, "Call torch.nn.utils.clip_grad_norm_ before step()."),
    "grad_clip": Keyword(None, _OUTSIDE, "Call torch.nn.utils.clip_grad_norm_ before step()."),
    "clip_grad": Keyword(None, _OUTSIDE, "Call torch.nn.utils.clip_grad_norm_ before step()."),
}


def settled(owner: str, name: str, value: Any, homes: Callable[[str], list[str]] = lambda name: []) -> bool:
    """Whether a keyword that is no option here says what holds anyway, and may be left out.

    Args:
        owner: who was called.
        name, value: the keyword.
        homes: name -> classes of the family that have an option of this name.

    Returns:
        False where nothing is known about this name.

    Raises:
        TypeError: it says what does not hold; with the reason, and what to do.
    """
    keyword = KEYWORDS.get(name)
    if keyword is not None:
        said = read(value)
        plain = said is None or (isinstance(said, (bool, int)) and bool(said) is keyword.holds)
        if plain and keyword.holds is not None:
            return True
        raise TypeError(f"{owner} has no option {name!r} (got {value!r}): {keyword.reason}. {keyword.advice}")
    if found := homes(name):
        raise TypeError(f"{owner} has no option {name!r}: it is one of {', '.join(found)}. Leave it out.")
    return False


# One thing that two classes name differently: a class that has the one takes the other name for it.
SYNONYMS = {"came_enabled": "came", "block_size": "blocksize", "blocksize": "block_size"}
# The documents' name of it, which to the improved classes is how sharp an edge of a picture is.
SYNONYMS["edge_threshold"] = "edge_case_threshold"
_FOUR = {"state_code": "softsign4"}


def translated(owner: str, options: dict[str, Any], known: Container[str]) -> dict[str, Any]:
    """The options by the names that this class has for them; what it has no name for stays as it is.

    Args:
        owner: who was called.
        options: as given.
        known: the names that the class has.

    Raises:
        TypeError: two names of one thing were given.
        ValueError: bits that this class does not hold.
    """
    found: dict[str, Any] = {}
    for name, value in options.items():
        meant = {name: value}
        if name not in known and SYNONYMS.get(name, "") in known:
            meant = {SYNONYMS[name]: value}
        elif name == "optim_bits" and name not in known:
            meant = _bits(owner, value, known)
        for new in meant.keys() & (found.keys() | (options.keys() - {name})):
            raise TypeError(f"{owner} got {new!r} and {name!r}: both say the same. Keep one.")
        found.update(meant)
    return found


def _bits(owner: str, value: Any, known: Container[str]) -> dict[str, Any]:
    """``optim_bits`` for a class that is told its bits by other options, or has only 32."""
    if "quantize_states" in known:
        allowed: dict[Any, dict[str, Any]] = {4: _FOUR, 8: {}, 32: {"quantize_states": False}}
    elif "state_code" in known:
        allowed = {4: _FOUR, 8: {}}
    else:
        allowed = {32: {}}
    value = read(value)
    if not isinstance(value, int) or isinstance(value, bool) or value not in allowed:
        what = " or ".join(map(str, allowed))
        advice = "For 32, use the class without '8bit'." if 32 not in allowed else "Use an 8-bit class."
        raise ValueError(f"optim_bits={value!r} is not allowed: {owner} holds {what} bits. {advice}")
    return allowed[value]


def refuse_in_group(group: dict[str, Any]) -> None:
    """Refuse a parameter group that asks for what no group can have; other foreign entries are left alone."""
    for name in group.keys() & KEYWORDS.keys():
        if KEYWORDS[name].holds is not None:
            settled("parameter group", name, group[name])
