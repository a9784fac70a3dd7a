"""The control decoder as a model package, for the tests of core."""
