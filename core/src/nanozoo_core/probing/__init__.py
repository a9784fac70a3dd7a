"""`nanozoo probe`: what an architecture can do, on tasks whose answers are known.

tasks/ are the tasks, one family a file, and task.py is what they have in common. coding.py writes
their symbols as tokens or bytes, batches.py makes batches of them. training.py trains a model on
one, scoring.py asks it, and member.py does both for one model, task, seed and rate. options.py
lists the command's words, request.py reads them, execute.py gives each training a process,
results.py chooses the rates, and report.py draws the matrix.
"""
