"""Do the models fit together? Keys, shapes, configurations, tokenizers, vocabularies."""
