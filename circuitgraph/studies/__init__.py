"""Studies: questions about the methods themselves, each answered by one command whose figures stand in the README."""
