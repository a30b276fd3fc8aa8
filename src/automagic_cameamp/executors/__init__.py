"""Who computes an update: torch, torch.compile, the CPU kernels, several processes. One interface."""
