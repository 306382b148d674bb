"""Rows of a second stage: a run and training questions in; its own right answers, as rows to learn from, out."""
