"""Kernels of H-Net, each beside its plain-torch reference."""
