"""Register the language model pools without importing torch or transformers."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from fusion_core import CommandSpec, ModelPoolSpec, TaskPoolSpec, hookimpl
from pools_lm.glue.tables import load_family, load_notice

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from fusion_core import Progress, RunResult

_POOLS = {
    "causal-lm": ("CausalPool", "Models that continue a text: Llama, Qwen, GPT-2, ..."),
    "vision-language": (
        "VisionLanguagePool",
        "Vision-language models, measured on text: LLaVA, Qwen-VL, ...",
    ),
    "seq2seq-lm": ("Seq2SeqPool", "Models that map one text to another: T5, BART, ..."),
    "sequence-classification": ("ClassificationPool", "Text classifiers with one shared head."),
    "sentence-encoder": ("EncoderPool", "Text encoders, including SentenceTransformers."),
}

_TASKS = {
    "lm-tasks": ("Language", "Text tasks of any kind: perplexity, choice or generate."),
    "lm-perplexity": ("Perplexity", "Likelihood of texts, in bits per byte."),
    "lm-choice": ("Choice", "Multiple-choice questions, answered by log-likelihood."),
    "lm-generate": ("Generate", "Questions answered by greedy generation."),
}
_AGREEMENT = "lm-agreement"

#: lm-mini's tasks, in the order of results.
_MINI = ("scripture", "kinds", "speech", "reverse", "roman", "past")

_SENTENCE_TASKS = {
    "sentence-classification": ("Classification", "Classification of texts or pairs of texts."),
    "sts": ("Similarity", "Semantic textual similarity, compared with human scores."),
}

_GLUE = {
    "gpt2-glue": ("Gpt2", "gpt2", "GPT-2", ("tasks",)),
    "flan-t5-glue": ("FlanT5", "flan-t5-base", "Flan-T5", ("tasks", "variant")),
}


@hookimpl
def fusion_register_model_pools() -> Iterator[ModelPoolSpec]:
    """Register one pool per kind of head, lm-mini, and the published GLUE experts."""
    for name, (target, summary) in _POOLS.items():
        yield ModelPoolSpec(
            name=name,
            summary=summary,
            target=f"pools_lm.pools:{target}",
            config="pools_lm.config:LanguageConfig",
            unlabeled_task_pool=_AGREEMENT if name == "causal-lm" else None,
            offline=True,
        )
    yield ModelPoolSpec(
        name="lm-mini",
        summary="A tiny Llama and six experts, included in the package.",
        target="pools_lm.mini.pools:MiniPool",
        config="pools_lm.mini.config:MiniConfig",
        default_task_pool="lm-mini",
        shared_options=("tasks",),
        offline=True,
        tasks=_MINI,
        licence="Apache-2.0",
    )
    for name, (target, family_name, title, shared) in _GLUE.items():
        family = load_family(family_name)
        yield ModelPoolSpec(
            name=name,
            summary=f"{title} and its published GLUE experts, from the hub.",
            target=f"pools_lm.glue.pools:{target}Glue",
            config=f"pools_lm.glue.config:{target}Config",
            default_task_pool=name,
            shared_options=shared,
            download_bytes=family.download_bytes,
            tasks=tuple(family.tasks),
            licence=load_notice("licence"),
            citation=load_notice("citation"),
        )


@hookimpl
def fusion_register_task_pools() -> Iterator[TaskPoolSpec]:
    """Register tasks for language models and for encoders."""
    for name, (target, summary) in _TASKS.items():
        yield TaskPoolSpec(
            name=name,
            summary=summary,
            target=f"pools_lm.tasks.pool:{target}Tasks",
            config=f"pools_lm.tasks.config:{target}TasksConfig",
            offline=True,
        )
    yield TaskPoolSpec(
        name=_AGREEMENT,
        summary="One task per expert, without data: agreement on prompts that models write.",
        target="pools_lm.tasks.agreement:AgreementTasks",
        config="pools_lm.tasks.config:AgreementConfig",
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
        summary="Six small text tasks of three kinds, included in the package.",
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
        summary="Tasks of lm-evaluation-harness, run in this or another environment.",
        target="pools_lm.harness.tasks:HarnessTasks",
        config="pools_lm.config:HarnessConfig",
        trust=("lm-eval-python", "lm-eval-include-path"),
    )
    for name, (target, family_name, title, _) in _GLUE.items():
        tasks = tuple(load_family(family_name).tasks)
        yield TaskPoolSpec(
            name=name,
            summary=f"{len(tasks)} GLUE tasks from the hub, with inputs for {title}.",
            target=f"pools_lm.glue.pools:{target}GlueTasks",
            config=f"pools_lm.glue.config:{target}TasksConfig",
            tasks=tasks,
            licence=load_notice("licence_of_data"),
            citation=load_notice("citation_of_data"),
        )


@hookimpl
def fusion_register_commands() -> Iterator[CommandSpec]:
    """Register `fuse smoke`."""
    yield CommandSpec(
        name="smoke",
        summary="Prompt a merged model, its base and its experts.",
        target="pools_lm.smoke.command:smoke",
    )


@hookimpl
def fusion_run_shown(result: RunResult, device: torch.device, progress: Progress) -> str | None:
    """Return the smoke test of a merged language model, to print below the run's results."""
    if "pools_lm.pools" not in sys.modules:  # not a pool of this plugin: spare others its imports
        return None
    from pools_lm.smoke.after_run import text_after_run

    return text_after_run(result, device, progress)
