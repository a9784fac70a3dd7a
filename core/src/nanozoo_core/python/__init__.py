"""The face for Python: what `import nanozoo_core` offers, and what the commands are written on.

Its modules import torch when they are called.
"""
