"""Could a result be a shortcut or a leak? Models that see no brain, duplicates, positions, and what they mean.

Imports data, evaluation and datamodules; ``training``, ``reading`` and the commands call it.
"""
