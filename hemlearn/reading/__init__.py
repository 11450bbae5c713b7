"""Finished runs applied to images: predict, evaluate, explain, export.

Files become series, series pass one engine, its probabilities become tables, pages and maps. Imports every room but
``compare`` and ``commands``. Only ``commands`` and the public names of hemlearn import it.
"""
