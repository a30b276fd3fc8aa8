"""What a model is called with in training: made from its configuration and the names of its arguments."""

from __future__ import annotations

import contextlib
import importlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .models import FitError, Spec

# Under which name a configuration says how wide the embedded text is.
TEXT_WIDTHS = (
    "caption_channels",
    "cross_attention_dim",
    "joint_attention_dim",
    "text_dim",
    "cap_feat_dim",
    "text_embed_dim",
    "caption_projection_dim",
)


class Batch(NamedTuple):
    """One batch.

    Args:
        size: samples in it.
        width: pixels, 0 for text.
        height: pixels.
        frames: of a video; 1 is a picture.
        tokens: length of the text.
    """

    size: int
    width: int
    height: int
    frames: int
    tokens: int


class Inputs:
    """Makes the arguments of a diffusers model by their names.

    Args:
        model: its configuration is read.
        spec: for the size of its latent.
        batch: what to make.
        dtype: of what is not a count.
    """

    def __init__(self, model: nn.Module, spec: Spec, batch: Batch, dtype: torch.dtype) -> None:
        self.config: Any = model.config
        self.spec, self.batch, self.dtype = spec, batch, dtype
        self.names = inspect.signature(model.forward).parameters
        self.rows, self.columns = batch.height // spec.latent, batch.width // spec.latent
        self.packed = bool({"img_ids", "img_shapes"} & set(self.names))
        patch = self._get("patch_size", "all_patch_size")
        self.video = "3D" in spec.cls or (isinstance(patch, (list, tuple)) and len(patch) == 3)

    def _get(self, *names: str) -> Any:
        return next((self.config[name] for name in names if self.config.get(name) is not None), None)

    def _new(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self.dtype)

    def _width(self) -> int:
        width = self._get(*TEXT_WIDTHS)
        if width is None:
            raise FitError(
                f"model {self.spec.name}: its configuration has none of {', '.join(TEXT_WIDTHS)}; give the "
                "inputs yourself with automagic_cameamp.fit.trace"
            )
        return width[0] if isinstance(width, (list, tuple)) else width

    def latents(self) -> Tensor:
        """Noisy latents, in patches where the model wants them so."""
        channels, b = self.config["in_channels"], self.batch.size
        if self.packed:
            return self._new(b, (self.rows // 2) * (self.columns // 2), channels)
        if self.video:
            return self._new(b, channels, (self.batch.frames - 1) // 4 + 1, self.rows, self.columns)
        return self._new(b, channels, self.rows, self.columns)

    def added(self) -> dict[str, Tensor]:
        """SDXL's pooled text and sizes."""
        times = 6 * self.config["addition_time_embed_dim"]
        text = self.config["projection_class_embeddings_input_dim"] - times
        return {
            "text_embeds": self._new(self.batch.size, text),
            "time_ids": self._new(self.batch.size, 6),
        }

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the model's forward.

        Raises:
            FitError: the model needs an argument that we do not know how to make.
        """
        b, tokens = self.batch.size, self.batch.tokens
        makers: dict[str, Callable[[], Any]] = {
            "sample": self.latents,
            "hidden_states": self.latents,
            "x": lambda: list(self.latents().unsqueeze(2).unbind(0)),
            "timestep": lambda: torch.ones(b),
            "t": lambda: torch.ones(b),
            "encoder_hidden_states": lambda: self._new(b, tokens, self._width()),
            "cap_feats": lambda: list(self._new(b, tokens, self._width()).unbind(0)),
        }
        if self.config.get("addition_embed_type") == "text_time":
            makers["added_cond_kwargs"] = self.added
        elif "added_cond_kwargs" in self.names and self.config.get("caption_channels"):  # PixArt's sizes
            makers["added_cond_kwargs"] = lambda: {
                "resolution": self._new(b, 2),
                "aspect_ratio": self._new(b, 1),
            }
        if self.config.get("pooled_projection_dim"):
            makers["pooled_projections"] = lambda: self._new(b, self.config["pooled_projection_dim"])
        if self.config.get("guidance_embeds"):
            makers["guidance"] = lambda: torch.ones(b)
        if self.packed:
            rows, columns = self.rows // 2, self.columns // 2
            axes = len(self.config.get("axes_dims_rope") or (1, 1, 1))
            makers["img_ids"] = lambda: torch.zeros(rows * columns, axes)
            makers["txt_ids"] = lambda: torch.zeros(tokens, axes)
            makers["img_shapes"] = lambda: [[(1, rows, columns)]] * b
        unknown = [
            name
            for name, p in self.names.items()
            if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and name not in makers
        ]
        if unknown:
            raise FitError(
                f"model {self.spec.name}: {self.spec.cls} needs {', '.join(unknown)}, which we do not know "
                "how to make; give the inputs yourself with automagic_cameamp.fit.trace"
            )
        return {name: make() for name, make in makers.items() if name in self.names}


@contextlib.contextmanager
def _unpacked() -> Iterator[None]:
    """Say of a batch what its values say: that no two texts share a row.

    transformers does not look at the values of fake tensors. It would make a mask for packed texts and
    repeat keys and values for it, which a real batch does not need.
    """
    masks: Any = importlib.import_module("transformers.masking_utils")
    name = "find_packed_sequence_indices"
    usual = getattr(masks, name, None)
    if usual is None:
        yield
        return
    setattr(masks, name, lambda position_ids: None)
    try:
        yield
    finally:
        setattr(masks, name, usual)


def loss_of(spec: Spec, batch: Batch, dtype: torch.dtype) -> Callable[[nn.Module], Tensor]:
    """The loss of one batch, as a function of the model: the next token's, or the square of an error."""

    def text(model: nn.Module) -> Tensor:
        ids = torch.zeros(batch.size, batch.tokens, dtype=torch.int64)
        with _unpacked():
            return model(input_ids=ids, labels=ids, use_cache=False).loss

    def picture(model: nn.Module) -> Tensor:
        out = model(**Inputs(model, spec, batch, dtype).arguments(), return_dict=False)[0]
        parts = out if isinstance(out, list) else [out]
        return torch.stack(
            [(part.float() - torch.zeros_like(part).float()).square().mean() for part in parts]
        ).mean()

    return text if spec.library == "transformers" else picture
