"""A corpus: what features do over many texts."""
