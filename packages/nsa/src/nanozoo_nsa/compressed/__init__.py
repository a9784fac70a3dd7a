"""The compressed branch: every few tokens become one key and one value.

compressor.py is phi of the paper; attention.py attends to what it makes, in torch, and
attention_triton.py holds the kernels of the same, with the choice of blocks that goes with it.
"""
