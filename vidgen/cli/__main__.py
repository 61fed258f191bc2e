"""`python -m vidgen.cli`: the command line where a module is wanted, as by `accelerate launch -m`."""

import sys

from vidgen.cli import main

sys.exit(main())
