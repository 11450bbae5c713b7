"""Predictions, thresholds, metrics and their intervals: everything is computed from predictions, never from logs."""
