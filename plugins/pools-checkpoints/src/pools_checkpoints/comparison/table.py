"""The table of side files: how each file is compared, and how serious a difference is.

A difference is an error where a merge of such models means nothing. It is a warning where the merge
means something that its user should know. The policies `alignment.config` and `alignment.tokenizer`
turn errors into warnings, or skip their part of the table.
"""

from __future__ import annotations

import fnmatch
import math
from typing import TYPE_CHECKING

from fusion_core.weights import Difference
from pools_checkpoints.comparison import configuration, facts, tokens
from pools_checkpoints.comparison.rows import Comparison, Inspection, Severity
from pools_checkpoints.comparison.tokenization import OPAQUE, tokenization
from pools_checkpoints.files import CONFIG, is_same_content
from pools_checkpoints.live import MODULES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pools_checkpoints.comparison.models import Model, Models

_PROCESSORS = (facts.PREPROCESSOR, facts.VIDEO, facts.PROCESSOR)
_TEMPLATES = (
    *(facts.TEMPLATE, facts.LEGACY_TEMPLATE, facts.TOKENIZER_CONFIG, facts.PROCESSOR),
    f"{facts.TEMPLATES}*.jinja",
)
#: Weights of a SentenceTransformer's module behind its encoder.
_MODULE_WEIGHTS = "[0-9]*_*/model.safetensors"
_TOKENIZERS = ("tokenizer.json", "vocab.json", "vocab.txt", "tekken.json", *tokens.SENTENCEPIECE)


def _unmerged_modules(models: Models) -> Iterator[Difference]:
    """Name the modules behind an encoder in a directory whose weights differ: none is merged."""
    reference, *others = models.by_name.values()
    for model in others:
        for file in fnmatch.filter(model.files, _MODULE_WEIGHTS):
            first = reference.files.get(file)
            if first is not None and not is_same_content(first, model.files[file], math.inf):
                problem = f"differs, and is not merged: the output has {reference.label}'s"
                yield Difference(file, model.name, problem, is_serious=False)


def _missing_in_output(models: Models) -> Iterator[Difference]:
    """Name the kinds of side files that an expert has and the output will not have."""
    reference = models.reference
    kinds = _kinds(reference)
    for model in models.by_name.values():
        if lost := [kind for kind in _kinds(model) if kind not in kinds]:
            problem = f"{reference.label}, and so the output, has none"
            yield Difference(" and ".join(lost), model.name, problem, is_serious=False)


def _kinds(model: Model) -> list[str]:
    kinds = {
        "tokenizer": not model.files.keys().isdisjoint(_TOKENIZERS),
        "chat template": bool(facts.chat_templates(model)),
        "preprocessor": not model.files.keys().isdisjoint(_PROCESSORS),
    }
    return [kind for kind, exists in kinds.items() if exists]


TABLE: tuple[Comparison | Inspection, ...] = (
    # Tensors of the same shapes may compute something else.
    Inspection("config", (CONFIG,), configuration.conflicts),
    # A classifier's rows are averaged by index, so an index has to stand for one class.
    Comparison("config", (CONFIG,), facts.judge_classifier, facts.labels, facts.same_labels),
    # A merged classifier is trained for one loss, which says what its outputs mean.
    Comparison("config", (CONFIG,), facts.judge_classifier, facts.problem_type),
    # Heads of two kinds may share names and shapes; their merge is neither.
    Comparison("config", (CONFIG,), facts.judge_head, facts.head, facts.same_head),
    # Weights can be merged, but the output begins and ends texts like the base.
    Comparison("config", (facts.GENERATION,), Severity.WARNING, facts.token_ids),
    # The same for models without that file. The defaults of a model with the file do not matter.
    Comparison("config", (CONFIG, facts.GENERATION), Severity.WARNING, facts.default_token_ids),
    # Weights can be merged, but the output sees images and sounds like the base.
    Comparison("config", _PROCESSORS, Severity.WARNING, facts.preprocessing, facts.same_settings),
    # Weights can be merged, but the output has the base's modules behind the encoder.
    Comparison(
        "config",
        ("[0-9]*_*/config.json", "*sentence_*.json"),
        Severity.WARNING,
        facts.modules,
    ),
    Comparison("config", (MODULES,), Severity.WARNING, facts.module_classes),
    Inspection("config", (_MODULE_WEIGHTS,), _unmerged_modules),
    # Tokenizers of two classes split and number texts differently.
    Comparison("config", (facts.TOKENIZER_CONFIG,), Severity.ERROR, facts.tokenizer_class),
    # Weights can be merged, but the output has only the side files of the base.
    Inspection("config", (*_TOKENIZERS, *_TEMPLATES, *_PROCESSORS), _missing_in_output),
    # Embeddings are merged by token id, so an id has to stand for one token.
    Inspection(
        "tokenizer",
        (*_TOKENIZERS, "added_tokens.json", facts.TOKENIZER_CONFIG),
        tokens.conflicts,
    ),
    # Every id still stands for its token, so weights can be merged. But the output splits texts
    # like the base, which an expert was not trained on.
    Comparison(
        "tokenizer",
        ("tokenizer.json", "merges.txt", facts.TOKENIZER_CONFIG, *OPAQUE),
        Severity.WARNING,
        tokenization,
    ),
    # Weights can be merged, but the output begins and ends texts like the base.
    Comparison(
        "tokenizer",
        (facts.SPECIAL_TOKENS, facts.TOKENIZER_CONFIG),
        Severity.WARNING,
        facts.special_tokens,
    ),
    # Weights can be merged, but the output formats conversations like the base.
    Comparison("tokenizer", _TEMPLATES, Severity.WARNING, facts.chat_templates),
)
#: Side files that are copied and not compared, with the reason.
NOT_COMPARED = {
    "normalizer.json": "Whisper's spelling of English, which only metrics use.",
}
