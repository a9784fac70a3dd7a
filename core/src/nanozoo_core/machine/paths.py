"""Paths that the user types: refused in a sentence where the system would raise at every use."""

from __future__ import annotations

from argparse import ArgumentTypeError
from pathlib import Path

from nanozoo_core.errors import ConfigError, Problems

LONGEST_NAME = 255  # bytes, of most file systems
LONGEST_PATH = 4095  # bytes, PATH_MAX of Linux
SHOWN = 40  # characters of a name that is too long


def path_problem(text: str) -> str | None:
    """What is wrong with a path, as the end of a sentence; None where it can be used."""
    if "\0" in text:
        return "has a NUL character, which no path may have"
    size = len(text.encode("utf-8", errors="surrogatepass"))
    parts = text.replace("\\", "/").split("/")
    longest = max(parts, key=len)
    if len(longest.encode("utf-8", errors="surrogatepass")) > LONGEST_NAME:
        return f"has a name of {len(longest)} letters; at most {LONGEST_NAME} bytes are possible"
    if size > LONGEST_PATH:
        return f"is {size} bytes long; at most {LONGEST_PATH} are possible"
    if parts[0].startswith("~"):
        try:
            Path(parts[0]).expanduser()
        except RuntimeError:
            return f"begins with {parts[0]}, which is no user of this machine"
    return None


def checked_path(text: str, what: str) -> Path:
    """Args: what: the setting or argument, such as "run_dir". Raises: ConfigError."""
    problem = path_problem(text)
    if problem is not None:
        raise ConfigError(f"{what}={shortened(text)} {problem}")
    return Path(text)


def require_path(problems: Problems, what: str, text: str | None) -> None:
    """Records a path that cannot be used; None passes."""
    problem = None if text is None else path_problem(text)
    problems.require(problem is None, f"{what}={shortened(text or '')} {problem}")


def path_argument(text: str) -> Path:
    """The `type` of an argument that is a path."""
    problem = path_problem(text)
    if problem is not None:
        raise ArgumentTypeError(f"{shortened(text)} {problem}")
    return Path(text)


def shortened(text: str) -> str:
    """A text of which an error shows enough to know it."""
    return text if len(text) <= 2 * SHOWN else f"{text[:SHOWN]}...{text[-SHOWN // 2 :]}"
