"""What is optimized: parameters in groups and stacks, their state, and whether it still fits."""
