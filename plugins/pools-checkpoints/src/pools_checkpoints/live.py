"""Live modules: what they state about themselves, and the names under which they share tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from torch import nn

from pools_checkpoints.files import CONFIG

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from fusion_core.weights import Files

MODULES = "modules.json"
_SETTINGS = "config_sentence_transformers.json"
_VOCABULARY = "vocab.json"
#: The end of names under which modules save what is not a tensor of theirs.
_EXTRA_STATE = "_extra_state"


def describe_live(model: nn.Module) -> Files:
    """Return what a live model states about itself, as its directory would: in side files.

    The configuration is that of the first module of transformers in it. A model of
    sentence-transformers states its prompts, the classes and settings of its modules, and the
    tokens of its first tokenizer. The tokens of other tokenizers, as a `Router` has, count as
    settings of their modules.
    """
    modules = [pair for pair in model.named_modules() if hasattr(pair[1], "get_config_dict")]
    files: dict[str, Any] = {**_read_configuration(model), **_read_settings(model, modules)}
    for name, module in modules:
        settings = dict(module.get_config_dict())
        tokens = _list_tokens(module)
        if tokens and _VOCABULARY in files:
            digest = hashlib.sha256(json.dumps(tokens).encode()).hexdigest()
            settings["tokens"] = f"{len(tokens)}, SHA-256 {digest}"
        elif tokens:
            files[_VOCABULARY] = tokens
        files[f"{name.replace('.', '_') or 0}_{type(module).__name__}/{CONFIG}"] = settings
    return {name: json.dumps(_to_json(stated)).encode() for name, stated in files.items()}


def _read_configuration(model: nn.Module) -> dict[str, Any]:
    for module in model.modules():
        describe = getattr(getattr(module, "config", None), "to_dict", None)
        if describe is not None:
            return {CONFIG: describe()}
    return {}


def _read_settings(model: nn.Module, modules: Sequence[tuple[str, nn.Module]]) -> dict[str, Any]:
    """Return what a SentenceTransformer states as a whole; nothing for any other model."""
    outermost = {name: module for name, module in modules if name and "." not in name}
    if not outermost:
        return {}
    settings = ("prompts", "default_prompt_name", "similarity_fn_name")
    return {
        _SETTINGS: {name: getattr(model, name, None) for name in settings},
        MODULES: [{"name": n, "type": type(module).__name__} for n, module in outermost.items()],
    }


def read_tensors(module: nn.Module) -> dict[str, Any]:
    """Return a module's tensors by name, without the extra states of its parts."""
    state = module.state_dict()
    return {name: value for name, value in state.items() if not name.endswith(_EXTRA_STATE)}


def find_ties(models: Iterable[object]) -> dict[str, str]:
    """Return the names that, in every model, only repeat a tensor, with its earlier name.

    Nothing is tied in a model that is no module.
    """
    first, *others = [
        set(_repeated_names(model)) if isinstance(model, nn.Module) else set() for model in models
    ]
    return dict(first.intersection(*others))


def _repeated_names(model: nn.Module) -> Iterator[tuple[str, str]]:
    known: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) in known:
            yield name, known[id(tensor)]
        else:
            known[id(tensor)] = name


def _list_tokens(module: nn.Module) -> dict[str, int]:
    """Return the ids of a tokenizer's tokens in their order; none for a module without tokenizer.

    Tokenizers of words list their words instead.
    """
    read = getattr(getattr(module, "tokenizer", None), "get_vocab", None)
    if read is None:
        return {}
    vocabulary = read()
    if not isinstance(vocabulary, Mapping):
        return {word: number for number, word in enumerate(vocabulary)}
    return dict(sorted(vocabulary.items(), key=itemgetter(1)))


def _to_json(value: Any) -> Any:  # noqa: ANN401 - any setting
    """Return a setting as JSON data; an object that JSON lacks becomes text without an address."""
    if isinstance(value, Mapping):
        return {str(key): _to_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(entry) for entry in value]
    if value is None or isinstance(value, str | int | float):
        return value
    return repr(value) if isinstance(value, nn.Module) else type(value).__name__
