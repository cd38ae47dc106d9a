"""`python -m palimpsest.cli`: the same as the command `palimpsest`."""

from palimpsest.cli.main import main

main()
