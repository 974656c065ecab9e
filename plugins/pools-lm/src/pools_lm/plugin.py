"""Registers the pools of language models; imports nothing heavy."""

from collections.abc import Iterator

from fusion_core import ModelPoolSpec, TaskPoolSpec, hookimpl
from pools_lm.glue.tables import family, said

_POOLS = {
    "causal-lm": ("CausalPool", "Models that go on with a text: Llama, Qwen, GPT-2, ..."),
    "seq2seq-lm": ("Seq2SeqPool", "Models that answer a text with another: T5, BART, ..."),
    "sequence-classification": ("ClassificationPool", "Models that put a text into a class."),
    "sentence-encoder": ("EncoderPool", "Encoders of texts, SentenceTransformers among them."),
}

_TASKS = {
    "lm-tasks": ("Language", "Tasks on texts, each measured in its way."),
    "lm-perplexity": ("Perplexity", "How likely a model finds texts, in bits per byte."),
    "lm-choice": ("Choice", "Which of a few answers a model finds the likeliest."),
    "lm-generate": ("Generate", "What a model answers in its own words, against what is right."),
}

_GLUE = {
    "gpt2-glue": ("Gpt2", "gpt2", "GPT-2", ("tasks",)),
    "flan-t5-glue": ("FlanT5", "flan-t5-base", "Flan-T5", ("tasks", "variant")),
}


@hookimpl
def fusion_register_model_pools() -> Iterator[ModelPoolSpec]:
    """Register a pool for each kind of head."""
    for name, (target, summary) in _POOLS.items():
        yield ModelPoolSpec(
            name=name,
            summary=summary,
            target=f"pools_lm.pools:{target}",
            config="pools_lm.config:LanguageConfig",
            offline=True,
        )
    for name, (target, first, title, shared) in _GLUE.items():
        yield ModelPoolSpec(
            name=name,
            summary=f"{title} and its published experts of GLUE's tasks, from the hub.",
            target=f"pools_lm.glue.pools:{target}Glue",
            config=f"pools_lm.glue.config:{target}Config",
            default_task_pool=name,
            shared_options=shared,
            download_bytes=family(first).download_bytes,
            tasks=tuple(family(first).tasks),
            licence=said("licence"),
            citation=said("citation"),
        )


@hookimpl
def fusion_register_task_pools() -> Iterator[TaskPoolSpec]:
    """Register tasks for models that go on with a text, or answer it with another."""
    for name, (target, summary) in _TASKS.items():
        yield TaskPoolSpec(
            name=name,
            summary=summary,
            target=f"pools_lm.tasks.pool:{target}Tasks",
            config=f"pools_lm.tasks.config:{target}TasksConfig",
            offline=True,
        )
    for name, (target, first, title, _) in _GLUE.items():
        yield TaskPoolSpec(
            name=name,
            summary=f"{len(family(first).tasks)} tasks of GLUE from the hub, as put to {title}.",
            target=f"pools_lm.glue.pools:{target}GlueTasks",
            config=f"pools_lm.glue.config:{target}TasksConfig",
            tasks=tuple(family(first).tasks),
            licence=said("licence_of_data"),
            citation=said("citation_of_data"),
        )
