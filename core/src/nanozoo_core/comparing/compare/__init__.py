"""`nanozoo compare`: train a set of models on equal terms and report what came out.

request.py reads the command, plan.py turns it into members (a model and a seed each), execute.py
trains them in processes of their own, results.py reads them back, ranking.py judges, and report.py
writes report.html, report.md, results.csv and the plots.
"""
