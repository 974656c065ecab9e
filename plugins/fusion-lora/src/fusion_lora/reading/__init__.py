"""Reading of PEFT's LoRA adapters as task vectors."""
