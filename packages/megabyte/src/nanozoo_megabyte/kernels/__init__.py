"""Triton kernels of MEGABYTE; their plain form is in patch_attention.py beside this folder."""
