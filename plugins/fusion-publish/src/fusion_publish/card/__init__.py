"""The model card of a merge: metadata, results, and how to use and reproduce the model."""
