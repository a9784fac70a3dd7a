"""`nanozoo scale`: the compute multiplier of models over a ladder of sizes and budgets.

power_law.py fits, scores.py holds points and their noise, estimate.py makes the surface of a model
with its copies, frontier.py the least loss for a cost, and multiplier.py compares two of them.
"""
