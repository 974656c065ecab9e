"""LoRA adapters as results: `fuse extract-lora`, and `output.adapter` of a recipe."""
