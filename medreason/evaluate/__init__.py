"""Benchmarks: a run or a model in; answers, and scores with their uncertainty, out."""
