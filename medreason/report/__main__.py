import sys

from medreason.report.pages import main

if __name__ == "__main__":
    sys.exit(main())
