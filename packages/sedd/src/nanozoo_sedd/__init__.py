"""SEDD: score entropy discrete diffusion (Lou, Meng and Ermon 2024, arXiv 2310.16834)."""
