"""One thin module per command; each has ``main(argv) -> exit status``.

A command reads its options, calls one function of a room below and prints what came of it. Heavy packages are imported
when it runs, not before, so that ``--help`` answers at once. Nothing imports this room but ``__main__``.
"""
