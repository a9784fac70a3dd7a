"""Which roles an adapter gives to parameters by a rule of its own."""

from __future__ import annotations

import re
from unittest.mock import patch

from torch import nn

from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.optim import groups


def own_roles(adapter: DefaultModelAdapter, model: nn.Module) -> dict[str, str]:
    """The roles that differ from those that core would give, with `*` for a number in a name.

    A small model hides such rules: core makes a matrix with few rows a vector, whatever the adapter
    says. Both answers are therefore asked as if no side were too small for Muon, so that a rule
    counts at every shape.
    """
    with patch.object(groups, "MIN_FAN_OUT", 1), patch.object(groups, "MIN_FAN_IN", 1):
        usual, given = groups.default_roles(model), adapter.parameter_roles(model)
    return {
        re.sub(r"\.\d+(?=\.|$)", ".*", name): role
        for name, role in given.items()
        if role != usual[name]
    }
