"""Evaluation: what a circuit does when the model really runs, against what its graph estimates."""
