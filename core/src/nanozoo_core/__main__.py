"""`python -m nanozoo_core`: the command `nanozoo`."""

from nanozoo_core.commands.cli import main

if __name__ == "__main__":
    main()
