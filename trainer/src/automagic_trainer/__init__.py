"""The trainer behind `automagic train` and `automagic demo`: a small diffusion model and its LoRAs.

Reading order: settings (what decides a run), data and text (what goes in), diffusion and model (what learns),
tasks (loss and held-out loss), loop (steps, checkpoints, resume), session (a finished folder), gallery,
plots and report (what comes out), commands (the command line). It sees of the optimizers what
`import automagic_cameamp` and `automagic_cameamp.factory` show, like any user of theirs.
"""

__version__ = "0.1.0"
