"""Predictions, thresholds, calibration, metrics, tests and their intervals.

Everything is computed from a table of predictions, never from a network. Patients are the unit of resampling and
testing. Imports ``util`` and ``config``; audits, tasks, reports, training, compare and reading use it.
"""
