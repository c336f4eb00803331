"""Edges: typed, exact, traced from the targets down; influence on the targets."""
