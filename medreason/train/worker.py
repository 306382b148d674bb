"""python -m medreason.train.worker DESCRIPTOR: trains one run after another for a sweep, over a base loaded once."""

import sys
from pathlib import Path

from medreason.core.worker import serve
from medreason.models.kept_base import keep_bases
from medreason.train.run import main

if __name__ == "__main__":
    keep_bases()
    sys.argv[0] = str(Path(__file__).with_name("__main__.py"))  # as its runs are called
    serve(main)
