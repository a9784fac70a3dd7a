"""Triton kernels of NSA; their plain forms are in selected.py, gathered.py and compression.py."""
