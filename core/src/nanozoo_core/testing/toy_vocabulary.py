"""A vocabulary without a tokenizer, for tests."""

from nanozoo_core.evaluation.estimate import UnknownVocabulary


class ToyVocabulary(UnknownVocabulary):
    """`size` tokens of one byte each; token 0 doubles as the separator."""

    name = "toy"
