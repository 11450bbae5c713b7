"""Could a result be a shortcut or a leak? Baselines that see no brain, duplicates, positions, what they mean.

Every run, ``index`` and external evaluation pass here. Imports ``data``, ``evaluation``, ``datamodules`` and below.
Reports, training, reading and the commands call it.
"""
