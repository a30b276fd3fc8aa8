"""Triton kernels of the fused engine; importing this package imports no triton.

``columns`` names the tables, ``device`` is what runs per element, ``passes`` are the kernels in the order
of a step, and ``launch`` starts them. Every equation is a technique's or a codec's; the docstring
of each function names it.
"""
