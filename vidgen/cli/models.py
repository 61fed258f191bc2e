"""`vidgen models`: what `vidgen.load` and `vidgen.build` know by name."""
