"""Backbones, freeze policies and losses."""
