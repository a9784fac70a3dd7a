"""How bfloat16 attention is computed on a CPU: what the run's choice of precision found fastest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

AttentionForm = Literal["kernel", "products", "float32"]
"""torch's fused kernel; batched products that keep their probabilities (core/ops); or that kernel
in float32. They differ in speed and in the last digits of bfloat16."""

_form: AttentionForm = "kernel"


def current_form() -> AttentionForm:
    """The form in force."""
    return _form


@contextmanager
def attention_form(form: AttentionForm) -> Iterator[None]:
    """Has what is computed inside it use `form`, in all threads."""
    global _form
    before, _form = _form, form
    try:
        yield
    finally:
        _form = before
