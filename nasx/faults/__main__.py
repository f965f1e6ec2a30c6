"""Run the suites from the command line."""

import sys

from nasx.faults.command import main

if __name__ == "__main__":
    sys.exit(main())
