"""Compiled kernels. Loaded when a step first needs them; the package works without."""
