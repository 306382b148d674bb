"""Rows to batches: files, folders, hub data sets and rules in, packed and resumable batches out."""
