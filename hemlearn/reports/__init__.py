"""What a finished run shows: figures, the model card, tables on the console.

Drawn from predictions and metrics, never from a network. Imports ``evaluation``, ``audits`` and below; ``training``,
``compare``, ``reading`` and the commands use it.
"""
