"""Finished runs compared: read, grouped, pooled, tested against each other and held against published figures."""
