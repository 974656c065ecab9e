"""What is to be expected of merges of a pool, and by which method: figures, and rules on them."""
