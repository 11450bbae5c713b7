"""A configuration becomes a finished run folder.

``build`` alone translates the configuration into objects; ``runner`` fits and tests; ``run`` is the folder. Imports
everything but ``compare``, ``reading`` and ``commands``.
"""
