"""`python -m medgen`, where the `medgen` command is not on the path."""

from medgen.cli import main

main()
