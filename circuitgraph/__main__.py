"""`python -m circuitgraph` is the command line."""

from circuitgraph.cli.main import main

main()
