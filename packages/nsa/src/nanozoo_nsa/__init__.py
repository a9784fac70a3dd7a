"""Native Sparse Attention: the control with compressed, selected and nearby keys."""
