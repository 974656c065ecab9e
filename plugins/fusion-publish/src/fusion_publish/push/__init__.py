"""The upload of a merge to the Hugging Face Hub."""
