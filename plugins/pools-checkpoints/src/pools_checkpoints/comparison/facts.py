"""Facts that models state in their side files, in one form, whichever file states them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fusion_core.weights import parse_json
from pools_checkpoints.comparison.models import Fact, architecture
from pools_checkpoints.comparison.rows import Severity, are_equal
from pools_checkpoints.files import CONFIG
from pools_checkpoints.live import MODULES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pools_checkpoints.comparison.models import Model, Models

GENERATION = "generation_config.json"
PREPROCESSOR, VIDEO, PROCESSOR = (
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
)
TOKENIZER_CONFIG, SPECIAL_TOKENS = "tokenizer_config.json", "special_tokens_map.json"
TEMPLATE, LEGACY_TEMPLATE = "chat_template.jinja", "chat_template.json"
TEMPLATES = "additional_chat_templates/"

#: Labels that transformers makes up where the classes have no names.
_MADE_UP = re.compile(r"label_?\d+|\d+")
#: The part of a model's class that names its head.
_HEAD = re.compile(r"For[A-Z].+|LMHeadModel|DoubleHeadsModel")
#: Classes that load any tokenizer.
_GENERIC_TOKENIZERS = {"PreTrainedTokenizer", "TokenizersBackend", "PythonBackend"}
#: Settings of processors that do not change what a model sees.
_NOT_SEEN = ("processor_class", "auto_map", "return_tensors", "device", "transformers_version")
_SECTIONS = ("image_processor", "feature_extractor", "video_processor")


def labels(model: Model) -> dict[str, Fact]:
    """Return which class each row of a classifier stands for, if the classes have names."""
    config = model.config(CONFIG)
    listed = config.get("label_names")  # timm
    by_id = _named_labels(config.get("id2label"))
    by_label = _named_labels(_swap(config.get("label2id")))
    by_index = _named_labels(dict(enumerate(listed)) if isinstance(listed, list) else {})
    stated = {"id2label": by_id or by_label or by_index, "label2id": _swap(by_label or by_id)}
    return {key: Fact(value, CONFIG) for key, value in stated.items() if value}


def _named_labels(by_id: object) -> dict[str, str]:
    """Return labels by number, as text, if any of them is more than a number."""
    if not isinstance(by_id, Mapping):
        return {}
    texts = {str(number): str(label) for number, label in by_id.items()}
    return {} if all(_MADE_UP.fullmatch(text.lower()) for text in texts.values()) else texts


def _swap(mapping: object) -> dict[Any, Any]:
    return {str(v): k for k, v in mapping.items()} if isinstance(mapping, Mapping) else {}


def same_labels(one: Mapping[Any, Any], other: Mapping[Any, Any]) -> bool:
    """Tell whether two models give the same names to the same rows, in upper or lower case."""
    lower_one, lower_other = (
        {str(key).lower(): str(value).lower() for key, value in mapping.items()}
        for mapping in (one, other)
    )
    return lower_one == lower_other


def problem_type(model: Model) -> dict[str, Fact]:
    """Return what a classifier's outputs mean: regression, one label, or several labels."""
    stated = model.config(CONFIG).get("problem_type")
    return {"problem_type": Fact(stated, CONFIG)} if isinstance(stated, str) else {}


def head(model: Model) -> dict[str, Fact]:
    """Return a model's class if it has a head; an encoder alone has none."""
    name = architecture(model.config(CONFIG))
    return {"architectures": Fact(name, CONFIG)} if _HEAD.search(name) else {}


def same_head(one: str, other: str) -> bool:
    """Tell whether two classes have heads of one kind."""
    heads = {match.group() for match in map(_HEAD.search, (one, other)) if match is not None}
    return len(heads) == 1 or heads == {"LMHeadModel", "ForCausalLM"}


def judge_classifier(models: Models, first: Model, other: Model) -> Severity:
    """Judge a difference that concerns a classifier: an error where it is merged.

    A policy or a pool drops a head that the output lacks, and its labels with it.
    """
    if models.reference.classifier.intersection(first.classifier, other.classifier):
        return Severity.ERROR
    return Severity.WARNING if first is models.reference else Severity.IGNORED


def judge_head(models: Models, first: Model, other: Model) -> Severity:
    """Judge heads of different kinds; differing tensors are reported by alignment itself."""
    if first.shapes != other.shapes:
        return Severity.IGNORED
    return judge_classifier(models, first, other)


def tokenizer_class(model: Model) -> dict[str, Fact]:
    """Return the class of a model's tokenizer, unless it is a generic one."""
    stated = model.config(TOKENIZER_CONFIG).get("tokenizer_class")
    name = stated.removesuffix("Fast") if isinstance(stated, str) else ""
    is_generic = name in {"", *_GENERIC_TOKENIZERS}
    return {} if is_generic else {"tokenizer_class": Fact(name, TOKENIZER_CONFIG)}


def special_tokens(model: Model) -> dict[str, Fact]:
    """Return which tokens begin, end and pad texts."""
    facts = {}
    for file in (SPECIAL_TOKENS, TOKENIZER_CONFIG):
        for role, stated in model.config(file).items():
            token = stated.get("content") if isinstance(stated, dict) else stated
            if role.endswith("_token") and isinstance(token, str):
                facts[role] = Fact(token, file)
    return facts


def token_ids(model: Model) -> dict[str, Fact]:
    """Return the ids of the tokens that begin, end and pad generated texts."""
    return _token_ids(model, GENERATION)


def default_token_ids(model: Model) -> dict[str, Fact]:
    """Return the token ids that hold for a model without a `generation_config.json`."""
    return {} if GENERATION in model.files else _token_ids(model, CONFIG)


def _token_ids(model: Model, file: str) -> dict[str, Fact]:
    facts = {}
    for key, stated in model.config(file).items():
        values = stated if isinstance(stated, list) else [stated]
        ids = sorted({value for value in values if type(value) is int})
        if key.endswith(("_token_id", "_token_ids")) and ids and len(ids) == len(values):
            facts[key] = Fact(ids, file)
    return facts


def preprocessing(model: Model) -> dict[str, Fact]:
    """Return how images, videos and sounds become numbers, from any of three files."""
    processor = model.config(PROCESSOR)
    hidden = {*_SECTIONS, "chat_template"}
    facts: dict[str, Fact] = {}
    for section in _SECTIONS:
        facts |= _settings(processor.get(section), PROCESSOR, section)
    rest = {key: value for key, value in processor.items() if key not in hidden}
    facts |= _settings(rest, PROCESSOR)
    facts |= _settings(model.config(VIDEO), VIDEO, "video_processor")
    return facts | _settings(model.config(PREPROCESSOR), PREPROCESSOR)


def _settings(stated: object, file: str, section: str = "") -> dict[str, Fact]:
    """Return the settings of one processor; no model has the same keys for images and sounds."""
    prefix = "video_processor." if section == "video_processor" else ""
    facts = {}
    for key, value in stated.items() if isinstance(stated, dict) else ():
        if value is None or key.startswith("_") or key in _NOT_SEEN:
            continue
        if key.endswith("_type") and isinstance(value, str):  # a class that had several names
            value = value.removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor")  # noqa: PLW2901
        name = "type" if key in {"image_processor_type", "feature_extractor_type"} else key
        facts[prefix + name] = Fact(value, file)
    return facts


def same_settings(one: Any, other: Any) -> bool:  # noqa: ANN401 - JSON
    """Compare two settings of a processor; a size may be one number or named edges."""
    if isinstance(one, dict) != isinstance(other, dict):
        edges, number = (one, other) if isinstance(one, dict) else (other, one)
        return all(are_equal(edge, number) for edge in edges.values())
    return are_equal(one, other)


def chat_templates(model: Model) -> dict[str, Fact]:
    """Return how conversations are formatted, from any of the four places that may say it."""
    texts: list[tuple[str, str, str]] = []
    for file in (LEGACY_TEMPLATE, PROCESSOR, TOKENIZER_CONFIG):
        stated = model.config(file).get("chat_template")
        texts += [(name, text, file) for name, text in _templates(stated)]
    for file in model.files:
        if file == TEMPLATE or (file.startswith(TEMPLATES) and file.endswith(".jinja")):
            name = file.removeprefix(TEMPLATES).removesuffix(".jinja")
            text = model.content(file).decode("utf-8", errors="replace")
            texts.append(("default" if file == TEMPLATE else name, text, file))
    return {
        "chat_template" if name == "default" else f"chat_template {name}": Fact(
            text.strip("\n"), file
        )
        for name, text, file in texts
    }


def _templates(stated: object) -> Iterator[tuple[str, str]]:
    """Yield templates by name: one text, or a list or mapping of several."""
    if isinstance(stated, str):
        yield "default", stated
    elif isinstance(stated, dict):
        yield from ((str(name), text) for name, text in stated.items() if isinstance(text, str))
    for entry in stated if isinstance(stated, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("template"), str):
            yield str(entry.get("name")), entry["template"]


def modules(model: Model) -> dict[str, Fact]:
    """Return the settings of a SentenceTransformer, and of its modules in folders of their own."""
    facts = {}
    for file in model.files:
        folder, _, name = file.rpartition("/")
        if not (name == CONFIG if folder else "sentence_" in name):
            continue
        prefix, stated_in = (f"{folder} ", "module") if folder else ("", file)
        for key, value in model.config(file).items():
            if value is not None and not key.endswith("__version__"):
                facts[prefix + key] = Fact(value, stated_in)
    return facts


def module_classes(model: Model) -> dict[str, Fact]:
    """Return the classes of a SentenceTransformer's modules, without their packages."""
    if MODULES not in model.files:
        return {}
    whole = b'{"modules": %b}' % model.content(MODULES)  # the parser takes objects only
    listed = parse_json(whole, path=f"{MODULES} of {model.name}")["modules"]
    entries = listed if isinstance(listed, list) else []
    kinds = [entry.get("type") for entry in entries if isinstance(entry, dict)]
    return {"modules": Fact([str(kind).rpartition(".")[2] for kind in kinds], MODULES)}
