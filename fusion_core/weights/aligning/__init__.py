"""Check that models fit together: keys, shapes, configurations, tokenizers, vocabularies."""
