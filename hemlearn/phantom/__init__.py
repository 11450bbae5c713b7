"""Synthetic anatomy in physical units, and writers of it in the on-disk layouts of real data sets.

It stands in wherever real data are absent: tests, demo, first steps. It draws with numpy and scipy and imports
``util`` alone; the data modules write it to the cache folder when no ``data.root`` is given.
"""
