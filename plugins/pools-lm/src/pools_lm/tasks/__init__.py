"""Tasks on texts: how likely they are, which answer is the likeliest, what a model answers."""
