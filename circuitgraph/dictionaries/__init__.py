"""Dictionaries (SAEs, transcoders, cross-layer transcoders, neurons): loading them from every published format."""
