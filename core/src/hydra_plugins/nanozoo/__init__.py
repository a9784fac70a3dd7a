"""Hydra finds plugins in packages below `hydra_plugins`."""
