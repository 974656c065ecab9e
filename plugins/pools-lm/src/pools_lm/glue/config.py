"""Options of the pools by name; free of torch, so that listing them costs nothing."""

from typing import Literal

from fusion_core import ComponentConfig
from pools_lm.tasks.config import MeasuringConfig, TaskNames

Variant = Literal["base", "base-lora", "large-lora"]


class Gpt2Config(ComponentConfig):
    """GPT-2 and the published experts of some tasks of GLUE, from the hub."""

    tasks: TaskNames | None = None
    """The tasks whose experts are fused, in this order; default: all seven."""


class FlanT5Config(ComponentConfig):
    """Flan-T5 and the published experts of some tasks of GLUE, from the hub."""

    tasks: TaskNames | None = None
    """The tasks whose experts are fused, in this order; default: all eight."""
    variant: Variant = "base"
    """Which experts: Flan-T5-base fine-tuned whole, or by LoRA of rank 16, or Flan-T5-large by
    LoRA."""


class Gpt2TasksConfig(MeasuringConfig):
    """Tasks of GLUE from the hub, with the heads of GPT-2's published experts."""

    transductive: bool = True
    """Adapt on the test examples, without their answers; there are no others."""


class FlanT5TasksConfig(Gpt2TasksConfig):
    """Tasks of GLUE from the hub, as questions that a model answers in words."""

    variant: Variant = "base"
    """Whose published figures stand beside a run's; default: the model pool's."""
