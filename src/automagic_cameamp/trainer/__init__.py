"""The trainer behind `automagic train` and `automagic demo`: a small diffusion model and its LoRAs.

Reading order: settings (what decides a run), data and text (what goes in), diffusion and model (what learns),
tasks (loss and held-out loss), loop (steps, checkpoints, resume), session (a finished folder), gallery,
plots and report (what comes out). It needs the extra ``automagic-cameamp[demo]``.
"""
