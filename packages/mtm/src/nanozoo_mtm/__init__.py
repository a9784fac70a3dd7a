"""The multi-token model with sequential modules: see the README beside this package."""
