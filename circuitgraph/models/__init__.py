"""Models: loading one, running it while reading and replacing activations, its tokens and formulas."""
