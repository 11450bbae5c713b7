"""Finished runs applied to images: predict, evaluate, explain, export.

Imports every room but ``compare`` and ``commands``; only ``commands`` and the public names import it.
"""
