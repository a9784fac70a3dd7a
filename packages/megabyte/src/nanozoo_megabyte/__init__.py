"""MEGABYTE: patches of bytes under a global and a local transformer."""
