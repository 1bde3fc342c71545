"""What to know of a dataset before anything is trained on it or scored: facts, and a verdict on every point."""
