"""`python -m nanozoo_core.train`: the command `train`, for torchrun."""

import sys

if __name__ == "__main__":
    from nanozoo_core.commands.train import main

    main()
else:  # who imports the module finds the function of the same name, which it would hide
    from nanozoo_core.python.training import train

    sys.modules[__name__] = train  # type: ignore[assignment]
