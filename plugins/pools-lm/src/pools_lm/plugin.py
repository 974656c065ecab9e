"""Registers the pools of language models; imports nothing heavy."""

from collections.abc import Iterator

from fusion_core import ModelPoolSpec, TaskPoolSpec, hookimpl

_POOLS = {
    "causal-lm": ("CausalPool", "Models that go on with a text: Llama, Qwen, GPT-2, ..."),
    "seq2seq-lm": ("Seq2SeqPool", "Models that answer a text with another: T5, BART, ..."),
    "sequence-classification": ("ClassificationPool", "Models that put a text into a class."),
    "sentence-encoder": ("EncoderPool", "Encoders of texts, SentenceTransformers among them."),
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


@hookimpl
def fusion_register_task_pools() -> Iterator[TaskPoolSpec]:
    """Register what language models are measured on."""
    yield TaskPoolSpec(
        name="lm-eval",
        summary="Tasks of EleutherAI's lm-evaluation-harness, here or in another environment.",
        target="pools_lm.harness_tasks:HarnessTasks",
        config="pools_lm.config:HarnessConfig",
    )
