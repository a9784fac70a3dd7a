"""The window branch: the nearest tokens, each with a key and a value of its own.

attention.py reads them in a whole sequence; while decoding, a ring of the state keeps them.
"""
