"""Options of the GLUE pools. Importing them does not import torch."""

from typing import Literal

from fusion_core import ComponentConfig
from pools_lm.tasks.config import MeasuringConfig, TaskNames

Variant = Literal["base", "base-lora", "large-lora"]


class Gpt2Config(ComponentConfig):
    """GPT-2 and its published experts of GLUE tasks, from the hub."""

    tasks: TaskNames | None = None
    """Merge the experts of these tasks, in this order. Default: all seven."""


class FlanT5Config(ComponentConfig):
    """Flan-T5 and its published experts of GLUE tasks, from the hub."""

    tasks: TaskNames | None = None
    """Merge the experts of these tasks, in this order. Default: all eight."""
    variant: Variant = "base"
    """Choose the experts: Flan-T5-base after full fine-tuning (`base`) or with LoRA of rank 16
    (`base-lora`), or Flan-T5-large with LoRA (`large-lora`)."""


class Gpt2TasksConfig(MeasuringConfig):
    """GLUE tasks from the hub, with the heads of GPT-2's published experts."""

    transductive: bool = True
    """Adapt on the test examples, without answers. There are no others."""


class FlanT5TasksConfig(Gpt2TasksConfig):
    """GLUE tasks from the hub, as questions that a model answers in words."""

    variant: Variant = "base"
    """Show the published results of this variant. Default: the model pool's variant."""
