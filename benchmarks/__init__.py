"""Measurements behind every number in the documentation. See README.md in this folder."""
