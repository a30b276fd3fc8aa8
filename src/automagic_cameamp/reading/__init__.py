"""What the optimizer does and holds, on request."""
