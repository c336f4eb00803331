"""Attributions: the runs, gradients and tables that give every node its estimated effect on the metric."""
