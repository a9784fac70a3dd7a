"""`python -m nanozoo_core.train`: the command `train`, for torchrun."""

from nanozoo_core.commands.train import main

if __name__ == "__main__":
    main()
