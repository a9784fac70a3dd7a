"""The settings that models share which learn to predict several tokens from every position."""

from __future__ import annotations

from dataclasses import dataclass

from nanozoo_core.config.control import ControlConfig


@dataclass(frozen=True)
class MultiTokenConfig(ControlConfig):
    """A subclass says how far ahead it looks."""

    cross_document_targets: bool
    """Let predictions of tokens behind the next one reach across the start of a new document."""

    @property
    def num_horizons(self) -> int:
        """How many tokens are predicted from every position, the next one among them."""
        raise NotImplementedError

    @property
    def num_extra_projections(self) -> int:
        """Output projections of a training step, without that of the next token."""
        raise NotImplementedError
