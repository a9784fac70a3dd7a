"""Multi-token prediction with parallel heads: see the README beside this package."""
