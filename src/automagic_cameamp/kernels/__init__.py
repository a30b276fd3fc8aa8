"""Compiled kernels. Importing this package loads none; the library works without.

``cpu/`` holds the C++ of ``native``. For GPUs, ``columns`` names the tables of the Triton kernels, ``device``
is what runs per element, ``passes`` are the kernels in the order of a step, and ``launch`` starts them.
Every equation is a technique's or a codec's; the docstring or comment of each function names it.
"""
