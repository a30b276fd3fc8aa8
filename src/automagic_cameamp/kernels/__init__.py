"""Compiled kernels. Importing this package loads none; the library works without.

``cpu/`` holds the C++ of ``native``, ``layout`` its structures as Python sees them, ``build`` compiles it.
Every equation is a technique's or a codec's; the comment of each function names it.
"""
