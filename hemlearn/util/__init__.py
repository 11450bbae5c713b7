"""What every room uses: errors with their remedy, console output, whole-or-nothing files, tables as they come.

Nothing here knows of images or models. Every room may import it; it imports nothing of hemlearn.
"""
