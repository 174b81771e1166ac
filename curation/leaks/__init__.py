"""What of the evaluation sets stands in the training data."""
