"""Text tasks: perplexity, multiple choice, generation, classification and similarity."""
