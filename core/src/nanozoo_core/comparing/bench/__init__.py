"""`nanozoo bench`: how fast models train and decode, side by side.

request.py reads the command, contestant.py is one model at work, worker.py gives each a process of
its own, command.py lets them take turns, and report.py makes the tables and bench.json.
"""
