"""Recurrent depth: a core iterated on a latent state (Geiping et al. 2025, arXiv 2502.05171)."""
