"""MDLM: masked diffusion, an any-order language model (Sahoo et al. 2024, arXiv 2406.07524)."""
