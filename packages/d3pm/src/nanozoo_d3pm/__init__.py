"""D3PM: discrete denoising diffusion over tokens (Austin et al. 2021, arXiv 2107.03006)."""
