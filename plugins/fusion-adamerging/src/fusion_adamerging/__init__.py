"""AdaMerging for fusion-core: coefficients learned from unlabeled data."""
