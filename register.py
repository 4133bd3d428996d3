"""A pipeline step's entry point: ``python register.py --agent NAME [--data JSON]``; ``--help`` says more."""

import sys
from pathlib import Path

try:
    import clara_results  # noqa: F401  (is it installed?)
except ModuleNotFoundError:  # a plain checkout
    sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from clara_results.operator.command import main

if __name__ == "__main__":
    sys.exit(main())
