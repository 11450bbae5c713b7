"""LightningModules: what is predicted, trained how, and how validation is scored."""
