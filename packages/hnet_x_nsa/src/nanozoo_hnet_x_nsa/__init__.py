"""H-Net whose main network attends sparsely: learned chunks, and few keys read of them."""
