"""What fits on a card: weights, gradients, state and activations of a training, before it is started.

    from automagic_cameamp.fit import fit

    for row in fit("sdxl", train="full", gpu=12).best():
        print(row.optimizer, row.way, row.peak / 2**30, row.fits)

Models are built on fake tensors, so nothing is downloaded or allocated; diffusers or transformers has to be
installed for their classes (extra ``fit``).
"""

from .answer import GIB, Answer, Question, Row, fit
from .commands import to_dict
from .models import FitError, Spec, find, known
from .show import markdown, picture, text
from .trace import Trace, trace

__all__ = [
    "GIB",
    "Answer",
    "FitError",
    "Question",
    "Row",
    "Spec",
    "Trace",
    "find",
    "fit",
    "known",
    "markdown",
    "picture",
    "text",
    "to_dict",
    "trace",
]
