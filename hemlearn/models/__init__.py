"""Networks and their parts: backbones, their weights, freeze policies, losses, features and sequence models.

Plain torch modules, built from keyword arguments; the LightningModules of ``tasks`` put them together. Imports
``data``, ``transforms`` and below.
"""
