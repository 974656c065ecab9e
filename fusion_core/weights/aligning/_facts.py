"""What models state in their side files, each kind of fact in one form, whatever file holds it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from fusion_core.weights.aligning._comparison import Severity, are_equal
from fusion_core.weights.aligning._models import Fact
from fusion_core.weights.reading.assets import CONFIG

if TYPE_CHECKING:
    from fusion_core.weights.aligning._models import Model, Models

GENERATION = "generation_config.json"
PREPROCESSOR, VIDEO, PROCESSOR = (
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
)
TOKENIZER_CONFIG, SPECIAL_TOKENS = "tokenizer_config.json", "special_tokens_map.json"
TEMPLATE, LEGACY_TEMPLATE = "chat_template.jinja", "chat_template.json"
TEMPLATES = "additional_chat_templates/"

#: Labels that transformers makes up where nobody names classes.
_MADE_UP = re.compile(r"label_?\d+|\d+")
#: Where a model's class names its head.
_HEAD = re.compile(r"For[A-Z].+|LMHeadModel|DoubleHeadsModel")
_SAME_HEAD = {"LMHeadModel": "ForCausalLM"}
_LONGEST_CLASS = 200
#: Classes that any tokenizer may be loaded as.
_ANY_TOKENIZER = ("PreTrainedTokenizer", "TokenizersBackend", "PythonBackend")
_TOKEN_IDS = ("_token_id", "_token_ids")
#: Settings of processors that do not change what a model sees.
_NOT_SEEN = ("processor_class", "auto_map", "return_tensors", "device", "transformers_version")
_SECTIONS = ("image_processor", "feature_extractor", "video_processor")


def labels(model: Model) -> dict[str, Fact]:
    """Return which class each row of a classifier stands for, if somebody named the classes."""
    config = model.config(CONFIG)
    by_id = _by_id(config.get("id2label"))
    by_label = _by_id(_swapped(config.get("label2id")))
    listed = config.get("label_names")  # timm
    named = dict(enumerate(listed)) if isinstance(listed, list) else {}
    stated = {
        "id2label": by_id or by_label or _by_id(named),
        "label2id": _swapped(by_label or by_id),
    }
    return {key: Fact(value, CONFIG) for key, value in stated.items() if value}


def same_labels(one: Mapping[Any, Any], other: Mapping[Any, Any]) -> bool:
    """Tell whether two models give the same rows the same names, upper or lower case."""
    return _lower(one) == _lower(other)


def problem_type(model: Model) -> dict[str, Fact]:
    """Return what a classifier's numbers mean: regression, one label, or several."""
    stated = model.config(CONFIG).get("problem_type")
    return {"problem_type": Fact(stated, CONFIG)} if isinstance(stated, str) else {}


def head(model: Model) -> dict[str, Fact]:
    """Return a model's class if it has a head; an encoder alone has none."""
    named = model.config(CONFIG).get("architectures")
    first = named[0] if isinstance(named, list) and named else ""
    name = first[:_LONGEST_CLASS] if isinstance(first, str) else ""
    return {"architectures": Fact(name, CONFIG)} if _HEAD.search(name) else {}


def same_head(one: str, other: str) -> bool:
    """Tell whether two classes have heads of one kind."""
    heads = [head.group() for head in map(_HEAD.search, (one, other)) if head is not None]
    return len({_SAME_HEAD.get(head, head) for head in heads}) == 1


def of_classifier(models: Models, ours: Model, theirs: Model) -> Severity:
    """Judge what concerns a classifier: an error where it is merged.

    A head that the output lacks is dropped by a policy or a pool, and its labels with it.
    """
    if models.merges_classifier(ours, theirs):
        return Severity.ERROR
    return Severity.WARNING if ours is models.reference else Severity.IGNORED


def of_head(models: Models, ours: Model, theirs: Model) -> Severity:
    """Judge heads of different kinds; tensors that differ are told by alignment itself."""
    if not theirs.has_tensors_of(ours):
        return Severity.IGNORED
    return of_classifier(models, ours, theirs)


def tokenizer_class(model: Model) -> dict[str, Fact]:
    """Return the class of a model's tokenizer, if it is a particular one."""
    named = model.config(TOKENIZER_CONFIG).get("tokenizer_class")
    kind = named.removesuffix("Fast") if isinstance(named, str) else ""
    return (
        {"tokenizer_class": Fact(kind, TOKENIZER_CONFIG)}
        if kind not in {"", *_ANY_TOKENIZER}
        else {}
    )


def roles(model: Model) -> dict[str, Fact]:
    """Return which tokens begin, end and fill texts."""
    return {
        role: Fact(token, file)
        for file in (SPECIAL_TOKENS, TOKENIZER_CONFIG)
        for role, given in model.config(file).items()
        if role.endswith("_token") and isinstance(token := _content(given), str)
    }


def token_ids(model: Model) -> dict[str, Fact]:
    """Return the numbers of tokens that begin, end and fill generated texts."""
    return _token_ids(model, GENERATION)


def usual_token_ids(model: Model) -> dict[str, Fact]:
    """Return the numbers that hold where no `generation_config.json` says otherwise."""
    return {} if GENERATION in model.files else _token_ids(model, CONFIG)


def _token_ids(model: Model, file: str) -> dict[str, Fact]:
    listed = {key: _listed(value) for key, value in model.config(file).items()}
    return {
        key: Fact(value, file)
        for key, value in listed.items()
        if key.endswith(_TOKEN_IDS) and value
    }


def preprocessing(model: Model) -> dict[str, Fact]:
    """Return how images, videos and sounds become numbers, from any of three files."""
    facts: dict[str, Fact] = {}
    whole = model.config(PROCESSOR)
    for section in _SECTIONS:
        facts |= _settings(whole.get(section), PROCESSOR, section)
    rest = {key: value for key, value in whole.items() if key not in _SECTIONS}
    facts |= _settings({**rest, "chat_template": None}, PROCESSOR, "")
    facts |= _settings(model.config(VIDEO), VIDEO, "video_processor")
    return facts | _settings(model.config(PREPROCESSOR), PREPROCESSOR, "")


def same_settings(one: Any, other: Any) -> bool:  # noqa: ANN401 - JSON
    """Compare two settings of a processor; a size may be one number or named edges."""
    if isinstance(one, dict) != isinstance(other, dict):
        edges, number = (one, other) if isinstance(one, dict) else (other, one)
        return all(are_equal(edge, number) for edge in edges.values())
    return are_equal(one, other)


def chat_templates(model: Model) -> dict[str, Fact]:
    """Return how conversations are written, from any of the four places."""
    facts: dict[str, Fact] = {}
    for file in (LEGACY_TEMPLATE, PROCESSOR, TOKENIZER_CONFIG):
        facts |= {
            f"chat_template {name}".removesuffix(" default"): Fact(text.strip("\n"), file)
            for name, text in _templates(model.config(file).get("chat_template"))
        }
    for file in model.files:
        if file == TEMPLATE or (file.startswith(TEMPLATES) and file.endswith(".jinja")):
            name = file.removeprefix(TEMPLATES).removesuffix(".jinja")
            key = "chat_template" if file == TEMPLATE else f"chat_template {name}"
            text = model.content(file).decode("utf-8", errors="replace")
            facts[key] = Fact(text.strip("\n"), file)
    return facts


def modules(model: Model) -> dict[str, Fact]:
    """Return the settings of a SentenceTransformer and of the modules behind its encoder."""
    own = [name for name in model.files if name.endswith("/config.json") or "sentence_" in name]
    facts = {
        f"{file} {key}": (value, file) for file in own for key, value in model.config(file).items()
    }
    return {
        key.removeprefix(f"{file} "): Fact(value, file)
        for key, (value, file) in facts.items()
        if value is not None and not key.endswith("__version__")
    }


def _by_id(stated: object) -> dict[str, str]:
    """Return labels by number as text, if any says more than its number."""
    if not isinstance(stated, Mapping):
        return {}
    found = {str(number): str(label) for number, label in stated.items()}
    return {} if all(map(_MADE_UP.fullmatch, map(str.lower, found.values()))) else found


def _swapped(stated: object) -> dict[Any, Any]:
    if not isinstance(stated, Mapping):
        return {}
    return {str(value): key for key, value in stated.items()}


def _lower(stated: Mapping[Any, Any]) -> dict[str, str]:
    return {str(key).lower(): str(value).lower() for key, value in stated.items()}


def _content(token: object) -> object:
    return token.get("content") if isinstance(token, dict) else token


def _listed(value: object) -> list[int]:
    """Return one number or several as a sorted list; anything else as none."""
    given = value if isinstance(value, list) else [value]
    numbers = {number for number in given if type(number) is int}
    return sorted(numbers) if len(numbers) == len(given) else []


def _settings(stated: object, file: str, section: str) -> dict[str, Fact]:
    """Return the settings of one processor; images and sounds share keys in no model."""
    prefix = "video_processor." if section == "video_processor" else ""
    settings = stated if isinstance(stated, dict) else {}
    return {
        f"{prefix}{_spelled(key)}": Fact(_kind(value) if key.endswith("_type") else value, file)
        for key, value in settings.items()
        if value is not None and not key.startswith("_") and key not in _NOT_SEEN
    }


def _spelled(key: str) -> str:
    return "type" if key in {"image_processor_type", "feature_extractor_type"} else key


def _kind(value: object) -> object:
    """Return one name for a processor's class, which has had several."""
    if not isinstance(value, str):
        return value
    return value.removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor")


def _templates(stated: object) -> Iterator[tuple[str, str]]:
    """Yield templates by name: one text, or a list or mapping of several."""
    if isinstance(stated, str):
        yield "default", stated
    named = stated if isinstance(stated, list) else []
    for entry in named:
        if isinstance(entry, dict) and isinstance(entry.get("template"), str):
            yield str(entry.get("name")), entry["template"]
    if isinstance(stated, dict):
        yield from ((str(name), text) for name, text in stated.items() if isinstance(text, str))
