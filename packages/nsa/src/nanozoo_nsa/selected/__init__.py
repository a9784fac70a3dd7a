"""The selected branch: whole blocks of keys, chosen by the compressed branch's probabilities.

choice.py says which blocks; attention.py attends to them, by a mask over all keys (the plain form),
by gathered blocks (gathered.py, on a CPU) or by the kernels of attention_triton.py.
"""
