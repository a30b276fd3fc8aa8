"""One short text per algorithm: which techniques, in which order."""
