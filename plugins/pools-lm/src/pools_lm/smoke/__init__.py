"""The smoke test: a few prompts that show whether a merged model still makes sense."""
