"""The table of what lies beside the weights: how each file is compared, and why that matters.

A difference is an error where a merge of such models means nothing, and a warning where the merge
means something that its user should know. The policies `alignment.config` and
`alignment.tokenizer` turn errors into warnings, or leave a part of the table out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion_core.weights.aligning import _adapters as adapters
from fusion_core.weights.aligning import _configuration as configuration
from fusion_core.weights.aligning import _facts as facts
from fusion_core.weights.aligning import _tokens as tokens
from fusion_core.weights.aligning._comparison import Comparison, Inspection, Severity, measure
from fusion_core.weights.aligning._cutting import OPAQUE, cutting
from fusion_core.weights.aligning._difference import Doubt
from fusion_core.weights.reading.assets import CONFIG
from fusion_core.weights.reading.location import ADAPTER_CONFIG

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from fusion_core.weights.aligning._models import Model, Models

_PROCESSORS = (facts.PREPROCESSOR, facts.VIDEO, facts.PROCESSOR)
_TEMPLATES = (
    *(facts.TEMPLATE, facts.LEGACY_TEMPLATE, facts.TOKENIZER_CONFIG, facts.PROCESSOR),
    f"{facts.TEMPLATES}*.jinja",
)
_TOKENIZERS = ("tokenizer.json", "vocab.json", "vocab.txt", "tekken.json", *tokens.PIECES)


def _lacking(models: Models) -> Iterator[Doubt]:
    """Name what an expert has beside it, and the output will not have."""
    reference = models.reference
    own = _kinds(reference)
    for model in models.by_name.values():
        if lost := [kind for kind in _kinds(model) if kind not in own]:
            problem = f"{measure(reference)}, and so the output, has none"
            yield Doubt(" and ".join(lost), model.name, problem, serious=False)


def _kinds(model: Model) -> list[str]:
    """Return which kinds of side files a model has."""
    kinds: Mapping[str, bool] = {
        "tokenizer": not model.files.keys().isdisjoint(_TOKENIZERS),
        "chat template": bool(facts.chat_templates(model)),
        "preprocessor": not model.files.keys().isdisjoint(_PROCESSORS),
    }
    return [kind for kind, is_there in kinds.items() if is_there]


TABLE: tuple[Comparison | Inspection, ...] = (
    Inspection(
        "config",
        (CONFIG,),
        "Tensors of one shape compute something else; the words in a key tell how grave that is.",
        configuration.conflicts,
    ),
    Comparison(
        "config",
        (CONFIG,),
        "A classifier's rows are averaged by number, so a number has to mean one class.",
        facts.of_classifier,
        facts.labels,
        facts.same_labels,
    ),
    Comparison(
        "config",
        (CONFIG,),
        "A merged classifier is trained for one loss: its numbers mean one thing.",
        facts.of_classifier,
        facts.problem_type,
    ),
    Comparison(
        "config",
        (CONFIG,),
        "Heads of two kinds may share names and shapes; a merge of both is neither.",
        facts.of_head,
        facts.head,
        facts.same_head,
    ),
    Comparison(
        "config",
        (facts.GENERATION,),
        "Weights merge all the same; the output begins and ends its texts as the base does.",
        Severity.WARNING,
        facts.token_ids,
    ),
    Comparison(
        "config",
        (CONFIG, facts.GENERATION),
        "The same without a file of its own; one model's file says nothing of another's default.",
        Severity.WARNING,
        facts.usual_token_ids,
    ),
    Comparison(
        "config",
        _PROCESSORS,
        "Weights merge all the same; the output sees images and sounds as the base does.",
        Severity.WARNING,
        facts.preprocessing,
        facts.same_settings,
    ),
    Comparison(
        "config",
        ("[0-9]*_*/config.json", "*sentence_*.json"),
        "Weights merge all the same; the output's modules behind the encoder are the base's.",
        Severity.WARNING,
        facts.modules,
    ),
    Comparison(
        "config",
        (facts.TOKENIZER_CONFIG,),
        "Tokenizers of two classes cut and number texts in two ways.",
        Severity.ERROR,
        facts.tokenizer_class,
    ),
    Inspection(
        "config",
        (ADAPTER_CONFIG,),
        "An adapter's differences belong to the weights that it was trained on.",
        adapters.bases,
    ),
    Inspection(
        "config",
        (ADAPTER_CONFIG,),
        "An option that nobody here knows may change the formula of the adapter.",
        adapters.unknown_options,
    ),
    Inspection(
        "config",
        (ADAPTER_CONFIG,),
        "An adapter without what it has trained is torn.",
        adapters.missing_modules,
    ),
    Inspection(
        "config",
        (ADAPTER_CONFIG,),
        "A tied matrix is merged once, and used twice.",
        adapters.tied_embeddings,
    ),
    Inspection(
        "config",
        (*_TOKENIZERS, *_TEMPLATES, *_PROCESSORS),
        "Weights merge all the same; the output has the side files of the base alone.",
        _lacking,
    ),
    Inspection(
        "tokenizer",
        (*_TOKENIZERS, "added_tokens.json", facts.TOKENIZER_CONFIG),
        "Embeddings are merged by number, so a number has to mean one token.",
        tokens.conflicts,
    ),
    Comparison(
        "tokenizer",
        ("tokenizer.json", "merges.txt", facts.TOKENIZER_CONFIG, *OPAQUE),
        "Every number still means its token, so weights merge; the output cuts texts as the base "
        "does, which an expert was not trained on.",
        Severity.WARNING,
        cutting,
    ),
    Comparison(
        "tokenizer",
        (facts.SPECIAL_TOKENS, facts.TOKENIZER_CONFIG),
        "Weights merge all the same; the output begins and ends its texts as the base does.",
        Severity.WARNING,
        facts.roles,
    ),
    Comparison(
        "tokenizer",
        _TEMPLATES,
        "Weights merge all the same; the output writes conversations as the base does.",
        Severity.WARNING,
        facts.chat_templates,
    ),
)
#: Side files that are copied and not compared, with the reason.
NOT_COMPARED = {
    "normalizer.json": "Whisper's spelling of English, which only metrics use.",
}
