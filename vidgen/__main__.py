"""`python -m vidgen`: the command line where the script `vidgen` is not on the path."""

import sys

from vidgen.cli import main

sys.exit(main())
