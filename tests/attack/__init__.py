"""Hostile, odd and merely untidy input through the real command line; each case is judged.

    python -m tests.attack                    # all cases; a table of counts, exit status 1 where a fault is left
    python -m tests.attack --share 40         # every fortieth case of each kind, as CI does
    python -m tests.attack --only dicom/slope # cases whose name holds the text; their output is shown

A case is *right* (exit status 0 and the right value, or a warning that names what is odd), a *clear error* (named file,
row or key, and its remedy), or a *fault*: a traceback, a hang, gigabytes of memory, silence, a wrong value.
"""
