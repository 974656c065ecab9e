"""Options of the pools by name; free of torch, so that listing them costs nothing."""

from typing import Annotated, Literal

from pydantic import Field

from fusion_core import ComponentConfig

TaskNames = Annotated[list[str], Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]
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


class Gpt2TasksConfig(ComponentConfig):
    """Tasks of GLUE from the hub, with the heads of GPT-2's published experts."""

    tasks: TaskNames | None = None
    """Which tasks, in this order, whether or not their experts are fused; default: those whose
    experts the model pool of this name fuses."""
    limit: Count | None = None
    """A quick look: only the first test examples of each task."""
    batch_size: Count = 16
    """Examples at once when measuring."""
    transductive: bool = True
    """Adapt on the test examples, without their answers; there are no others."""


class FlanT5TasksConfig(Gpt2TasksConfig):
    """Tasks of GLUE from the hub, as questions that a model answers in words."""

    variant: Variant = "base"
    """Whose published figures stand beside a run's; default: the model pool's."""
