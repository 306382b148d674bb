"""Searches: a space and a budget in, trials in processes of their own, a study on disk and a ranking out."""
