"""`python -m tinyvit` is the `tinyvit` command."""

import sys

from tinyvit.cli import main

sys.exit(main())
