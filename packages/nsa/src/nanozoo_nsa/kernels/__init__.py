"""Triton kernels of NSA; their plain forms are in selected.py and gathered.py."""
