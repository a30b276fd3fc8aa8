"""Models by name or by configuration file, built without a byte of weights."""

from __future__ import annotations

import difflib
import importlib
import json
import warnings
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

TABLE = Path(__file__).with_name("models.json")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
INSTALL = 'pip install "automagic-cameamp[fit]"'
FOLDERS = ("", "transformer", "unet")  # where a checkpoint keeps the configuration of what is trained


class FitError(ValueError):
    """Something that cannot be computed; the message is one line and says what to do."""


@dataclass(frozen=True)
class Spec:
    """What has to be known of a model.

    Args:
        name: as asked for.
        title: for people.
        source: where the configuration was published.
        library: 'diffusers' or 'transformers', whose class it is.
        cls: name of the class.
        config: arguments of that class that are not its defaults.
        parameters: their published number, 0 where nobody vouches for it.
        family: which command lines train it; '' for none that we know.
        resolution: pixels of a side it is trained at; None for text.
        tokens: length of its text.
        latent: pixels of a side that become one of the latent.
    """

    name: str
    title: str
    source: str
    library: str
    cls: str
    config: dict[str, Any] = field(hash=False)
    parameters: int = 0
    family: str = ""
    resolution: int | None = None
    tokens: int = 77
    latent: int = 8


@lru_cache
def known() -> dict[str, Spec]:
    """The models that have a name."""
    return {name: Spec(name, **row) for name, row in json.loads(TABLE.read_text("utf-8")).items()}


def find(model: str) -> Spec:
    """The model of a name, or of the configuration at a path.

    Args:
        model: a name of ``known()``, a ``config.json``, or a folder that holds one (or a pipeline's folder).

    Raises:
        FitError: there is no such name or file, or it is of no known kind.
    """
    if model in known():
        return known()[model]
    path = Path(model)
    if path.is_dir():
        found = [p for name in FOLDERS if (p := path / name / "config.json").is_file()]
        if not found:
            raise FitError(f"model={model!r}: the folder holds no config.json, nor transformer/ or unet/ one")
        path = found[0]
    if not path.is_file():
        near = difflib.get_close_matches(model.lower(), known(), 3, 0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known())}"
        raise FitError(f"model={model!r} is neither a name nor a file; {hint}")
    try:
        config = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise FitError(f"model={model!r}: {path} is not JSON ({error})") from None
    return _of_config(model, path, config)


def _of_config(model: str, path: Path, config: Any) -> Spec:
    if not isinstance(config, dict) or not ({"_class_name", "architectures", "model_type"} & config.keys()):
        raise FitError(
            f"model={model!r}: {path} names no class: a diffusers configuration has '_class_name', a "
            "transformers one 'architectures' or 'model_type'"
        )
    if "_class_name" not in config:
        cls = (config.get("architectures") or [config.get("model_type", "")])[0]
        return Spec(model, model, str(path), "transformers", cls, config, family="llm", tokens=2048)
    cls = config["_class_name"]
    alike = next((spec for spec in known().values() if spec.cls == cls), None)
    own = {key: value for key, value in config.items() if not key.startswith("_")}
    family = "" if alike is None else alike.family
    if cls == "UNet2DConditionModel":
        family = "sdxl" if config.get("addition_embed_type") == "text_time" else "sd"
    latent = 16 if own.get("in_channels") == 48 else 8
    side = own.get("sample_size")
    default = alike.resolution if alike is not None else 1024
    resolution = side * latent if isinstance(side, int) else default
    tokens = 77 if alike is None else alike.tokens
    return Spec(model, model, str(path), "diffusers", cls, own, 0, family, resolution, tokens, latent)


def build(spec: Spec, dtype: torch.dtype) -> nn.Module:
    """The model, in training mode. Call it under a ``FakeTensorMode``, or pay for the weights.

    Raises:
        FitError: the library is missing, is too old for the class, or refuses the configuration.
    """
    try:
        library: Any = importlib.import_module(spec.library)
    except ImportError as error:
        raise FitError(f"model {spec.name}: needs {spec.library} ({error}): {INSTALL}") from None
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = _diffusers(library, spec) if spec.library == "diffusers" else _transformers(library, spec)
    finally:
        torch.set_default_dtype(before)
    count = sum(p.numel() for p in model.parameters())
    if spec.parameters and count != spec.parameters:
        version = library.__version__
        raise FitError(
            f"model {spec.name}: {spec.library} {version} builds {count:,} parameters in place of the "
            f"published {spec.parameters:,}: use another version of it"
        )
    _cast_buffers(model, dtype)
    return model.train()


def _cast_buffers(model: nn.Module, dtype: torch.dtype) -> None:
    """Buffers that a checkpoint holds are loaded in the type of the weights."""
    saved = model.state_dict().keys()
    for name, buffer in list(model.named_buffers()):
        if buffer.is_floating_point() and name in saved:
            path, _, last = name.rpartition(".")
            setattr(model.get_submodule(path), last, buffer.to(dtype))


def _class(library: Any, spec: Spec, name: str) -> Any:
    found = getattr(library, name, None)
    if found is None:
        version = library.__version__
        raise FitError(
            f"model {spec.name}: {spec.library} {version} has no {name}; a newer one may: {INSTALL}"
        )
    return found


def _diffusers(library: Any, spec: Spec) -> nn.Module:
    cls = _class(library, spec, spec.cls)
    try:
        return cls.from_config(spec.config)
    except (TypeError, ValueError, KeyError) as error:
        raise FitError(f"model {spec.name}: {spec.cls} refuses the configuration: {error}") from error


def _transformers(library: Any, spec: Spec) -> nn.Module:
    auto = library.AutoModelForCausalLM
    kind = spec.config.get("model_type")
    try:
        if kind:
            rest = {key: value for key, value in spec.config.items() if key != "model_type"}
            config = library.AutoConfig.for_model(kind, **rest)
        else:
            config = _class(library, spec, spec.cls).config_class(**spec.config)
        return auto.from_config(config, dtype=torch.get_default_dtype())
    except (TypeError, ValueError, KeyError) as error:
        raise FitError(f"model {spec.name}: transformers refuses the configuration: {error}") from error
