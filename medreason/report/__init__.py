"""Runs, sweeps and answers to look at: their files in; numbers with uncertainty, pictures and pages out."""
