"""How a command runs and what it leaves: command line in, typed settings, log, run directory and printed lines out."""
