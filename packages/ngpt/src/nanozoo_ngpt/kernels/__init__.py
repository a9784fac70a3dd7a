"""Kernels of nGPT, each beside its plain-torch reference."""
