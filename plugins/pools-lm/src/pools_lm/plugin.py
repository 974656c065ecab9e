"""Registers the pools of language models; imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion_core import CommandSpec, ModelPoolSpec, TaskPoolSpec, hookimpl
from pools_lm.glue.tables import family, said

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from fusion_core import Progress, RunResult

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

#: lm-mini's tasks, in the order of results.
_MINI = ("scripture", "kinds", "speech", "reverse", "roman", "past")

_SENTENCE_TASKS = {
    "sentence-classification": ("Classification", "Which class a text, or a pair, belongs to."),
    "sts": ("Similarity", "How alike two sentences are, against what people say."),
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
    yield ModelPoolSpec(
        name="lm-mini",
        summary="A tiny Llama and its six experts, inside the package.",
        target="pools_lm.mini.pools:MiniPool",
        config="pools_lm.mini.config:MiniConfig",
        default_task_pool="lm-mini",
        shared_options=("tasks",),
        offline=True,
        tasks=_MINI,
        licence="Apache-2.0",
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
    """Register tasks for language models, and for encoders."""
    for name, (target, summary) in _TASKS.items():
        yield TaskPoolSpec(
            name=name,
            summary=summary,
            target=f"pools_lm.tasks.pool:{target}Tasks",
            config=f"pools_lm.tasks.config:{target}TasksConfig",
            offline=True,
        )
    for name, (target, summary) in _SENTENCE_TASKS.items():
        yield TaskPoolSpec(
            name=name,
            summary=summary,
            target=f"pools_lm.tasks.sentences:{target}Tasks",
            config=f"pools_lm.tasks.sentence_config:{target}Config",
            offline=True,
        )
    yield TaskPoolSpec(
        name="lm-mini",
        summary="Six small tasks of all kinds, inside the package.",
        target="pools_lm.mini.pools:MiniTasks",
        config="pools_lm.mini.config:MiniTasksConfig",
        offline=True,
        tasks=_MINI,
        licence="scripture: public domain; roman: Apache-2.0; the others: WordNet 3.0; the "
        "package's data/lm-mini/LICENCES has them",
        citation="Fellbaum (ed.), WordNet: An Electronic Lexical Database, MIT Press, 1998",
    )
    yield TaskPoolSpec(
        name="lm-eval",
        summary="Tasks of EleutherAI's lm-evaluation-harness, here or in another environment.",
        target="pools_lm.harness.tasks:HarnessTasks",
        config="pools_lm.config:HarnessConfig",
        trust=("lm-eval-python", "lm-eval-include-path"),
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


@hookimpl
def fusion_register_commands() -> Iterator[CommandSpec]:
    """Register the smoke test."""
    yield CommandSpec(
        name="smoke",
        summary="Ask a language model a few things, beside those it was merged from.",
        target="pools_lm.smoke.command:smoke",
    )


@hookimpl
def fusion_run_shown(result: RunResult, device: torch.device, progress: Progress) -> str | None:
    """Show what a merged language model says, beside its base and experts."""
    from pools_lm.smoke.after_run import shown_after_run

    return shown_after_run(result, device, progress)
