"""`nanozoo tune`: the same search over settings for several models, and the recipes that it finds.

request.py reads the command, space.py says what is searched, study.py asks Optuna for trials and
tells it their scores, pruning.py ends trials early, search.py goes through the rounds, trials.py
makes trainings of trials, trial.py trains one in a process of its own, confirm.py trains the best
again with fresh seeds, and report.py, page.py, plots.py and recipe.py tell what came out.
"""
