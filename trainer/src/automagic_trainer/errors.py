"""The exceptions that the command line turns into one line and an exit code."""

from __future__ import annotations

# Both at once: where the optimizers are not installed yet, an index has no package of their name.
INSTALL = "pip install . ./trainer"


class UserError(Exception):
    """Bad input: the message is one line that says what is wrong and what to do. The CLI exits with 2."""


class TrainingFailed(Exception):
    """The run itself went wrong (a loss that is not a number). The CLI exits with 1."""
