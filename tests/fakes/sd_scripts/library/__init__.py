"""Stands for the package that an sd-scripts checkout calls `library`."""
