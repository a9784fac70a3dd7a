"""Names of variables of the environment that several rooms read."""

FORCED = "NANOZOO_CPU_PRECISION"
"""float32 or bfloat16: what auto is on a CPU without a measurement, such as in tests."""
