"""The configuration: its keys and rules, how Hydra composes it, and which of it determines a result.

Nothing heavy is imported here, so that ``--help`` and ``--cfg job`` stay fast. Only ``training``, ``reading``,
``compare`` and ``commands`` read a :class:`~hemlearn.config.schema.Config`; all else takes keyword arguments.
"""
