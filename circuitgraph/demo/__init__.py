"""The embedded demo: what it runs and prints, and how its model and dictionaries were trained.

`python -m circuitgraph.demo.train` makes both again; `circuitgraph.embedded` says where they lie.
"""
