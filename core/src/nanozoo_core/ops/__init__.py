"""Ops of two or more models: each a torch reference, a fast torch path and a Triton twin."""
