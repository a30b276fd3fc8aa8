"""The CPU kernels as an executor, and the plan that lets a step call them once for all parameters."""
