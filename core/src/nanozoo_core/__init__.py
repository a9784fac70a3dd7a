"""The shared core of nanozoo. Importing it loads neither torch nor Hydra."""

__version__ = "0.1.0"
