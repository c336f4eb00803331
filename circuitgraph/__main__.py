"""`python -m circuitgraph` is the command line."""

from circuitgraph.cli import main

main()
