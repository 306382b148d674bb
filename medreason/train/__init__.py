"""Training: settings and batches in; a run directory with adapter, checkpoints and metrics out."""
