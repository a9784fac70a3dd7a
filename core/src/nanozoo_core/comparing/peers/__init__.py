"""`nanozoo bench --peers`: training steps of nanozoo beside those of other projects.

The races themselves are scripts of the repository, core/benchmarks/peers. request.py reads the
command, races.py knows what each race needs, command.py runs one after another, and report.py makes
the table and peers.json.
"""
