"""The examples have environments of their own: the nox session third-party runs their tests."""

collect_ignore = ["examples"]
