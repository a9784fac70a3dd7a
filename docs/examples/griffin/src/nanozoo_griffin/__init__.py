"""Griffin (De et al. 2024, arXiv 2402.19427): gated linear recurrences with local attention."""
