"""``python -m clara_results``: the same as the command ``clara-results``."""

import sys

from clara_results.cli.main import main

sys.exit(main())
