"""Reading of a configuration from YAML.

mergekit ignores keys that it does not know. Here a key that resembles a known one is a problem, and
any other one a warning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusion_core.commands import format_value
from recipes_mergekit.configuration import Configuration, Reference, Slice, Source, Tokens

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from fusion_core.commands import ImportFindings

_KEYS = (
    *("merge_method", "models", "slices", "modules", "base_model", "parameters", "dtype"),
    *("out_dtype", "tokenizer_source", "tokenizer", "chat_template", "name"),
)
_DTYPES = ("bfloat16", "float16", "float32", "float64")


class Reader:
    """Reads one document, and records its problems."""

    def __init__(self, findings: ImportFindings, prefix: str = "") -> None:
        self._findings, self._prefix = findings, prefix

    def read(self, document: Mapping[str, Any]) -> Configuration | None:
        """Return the configuration, or None if it has problems that hide others."""
        self._check_keys(document, _KEYS, "")
        method = document.get("merge_method")
        base = self._read_reference(document.get("base_model"), "base_model")
        slices = self._read_slices(document, base)
        if not isinstance(method, str):
            self._refuse("merge_method", f"expected a name, got {format_value(method)}")
        if document.get("chat_template") is not None:
            reason = "the output has the template of the chosen tokenizer; replace it there"
            self._refuse("chat_template", reason)
        configuration = Configuration(
            str(method),
            base,
            tuple(slices),
            self._read_mapping(document.get("parameters"), "parameters"),
            self._read_dtype(document, "dtype"),
            self._read_dtype(document, "out_dtype"),
            self._read_tokens(document),
            self._prefix,
        )
        is_complete = slices and all(part.sources for part in slices) and isinstance(method, str)
        return configuration if is_complete else None

    def _refuse(self, key: str, reason: str) -> None:
        self._findings.refuse(self._prefix + key, reason)

    def _check_keys(self, mapping: Mapping[str, Any], known: Collection[str], key: str) -> None:
        for name in mapping.keys() - {*known}:
            self._findings.report_unknown(f"{self._prefix}{key}{name}", known)

    def _read_slices(self, document: Mapping[str, Any], base: Reference | None) -> list[Slice]:
        """Return the slices. Whole models are one, and a base that is not listed the last."""
        given = [name for name in ("models", "slices", "modules") if document.get(name)]
        if "modules" in given:
            self._refuse("modules", "merges of several modules have no counterpart")
            return []
        if len(given) != 1:
            self._refuse("models", f"expected one of models and slices, got {given or 'none'}")
            return []
        (key,) = given
        entries = document[key]
        if not isinstance(entries, list):
            self._refuse(key, f"expected a list, got {format_value(entries)}")
            return []
        if key == "models":
            sources = self._read_sources(entries, key, ("model", "parameters"))
            if base is not None and all(source.model != base for source in sources):
                sources = (*sources, Source(base, None, {}))
            return [Slice(sources, None, {}, key)]
        return [self._read_slice(entry, f"{key}.{n}") for n, entry in enumerate(entries)]

    def _read_slice(self, entry: object, key: str) -> Slice:
        entry = self._read_mapping(entry, key)
        known = ("sources", "base_model", "residual_weight", "parameters")
        self._check_keys(entry, known, f"{key}.")
        sources = entry.get("sources")
        if not isinstance(sources, list) or not sources:
            self._refuse(
                f"{key}.sources", f"expected a list of models, got {format_value(sources)}"
            )
            sources = []
        part = Slice(
            self._read_sources(sources, f"{key}.sources", ("model", "layer_range", "parameters")),
            self._read_reference(entry.get("base_model"), f"{key}.base_model"),
            self._read_mapping(entry.get("parameters"), f"{key}.parameters"),
            key,
        )
        lengths = {
            stop - start for start, stop in (source.layers or (0, 0) for source in part.sources)
        }
        if len(lengths) > 1:
            self._refuse(key, f"the sources have different numbers of layers: {sorted(lengths)}")
        return part

    def _read_sources(
        self, entries: list[Any], key: str, known: tuple[str, ...]
    ) -> tuple[Source, ...]:
        sources: list[Source] = []
        for number, given in enumerate(entries):
            where = f"{key}.{number}"
            entry = self._read_mapping(given, where)
            self._check_keys(entry, known, f"{where}.")
            model = self._read_reference(entry.get("model"), f"{where}.model")
            if model is None:
                self._refuse(f"{where}.model", "missing")
                continue
            if any(model == source.model for source in sources):
                self._refuse(f"{where}.model", f"{model} is listed twice, and mergekit takes one")
            layers = self._read_range(entry, where) if "layer_range" in known else None
            parameters = self._read_mapping(entry.get("parameters"), f"{where}.parameters")
            sources.append(Source(model, layers, parameters))
        return tuple(sources)

    def _read_range(self, entry: Mapping[str, Any], key: str) -> tuple[int, int]:
        match entry.get("layer_range"):
            case [int() as start, int() as stop] if 0 <= start < stop:
                return start, stop
            case given:
                reason = f"expected two layer numbers, as in [0, 24], got {format_value(given)}"
                self._refuse(f"{key}.layer_range", reason)
                return 0, 1

    def _read_reference(self, value: object, key: str) -> Reference | None:
        """Return a model from a text, `base+adapter`, or mergekit's mapping of both."""
        match value:
            case None:
                return None
            case str() if value and value.count("+") <= 1:
                path, _, adapter = value.partition("+")
                if path and all(part.count("@") <= 1 for part in (path, adapter)):
                    return Reference(path, adapter or None)
            case {"model": model, **rest} if not {*rest} - {"lora", "override_architecture"}:
                if rest.get("override_architecture") is not None:
                    reason = "fusion-core reads tensors by name, and knows no architectures"
                    self._refuse(f"{key}.override_architecture", reason)
                owner, lora = self._read_path(model), self._read_path(rest.get("lora"))
                if owner is not None:
                    return Reference(owner, lora)
        self._refuse(
            key,
            f"expected a model, as in org/name or org/base+org/adapter, got {format_value(value)}",
        )
        return None

    @staticmethod
    def _read_path(value: object) -> str | None:
        match value:
            case str():
                return value or None
            case {"path": str() as path, **rest} if path:
                revision = rest.get("revision")
                return path if revision is None else f"{path}@{revision}"
        return None

    def _read_mapping(self, value: object, key: str) -> Mapping[str, Any]:
        if value is None:
            return {}
        if not isinstance(value, dict):
            self._refuse(key, f"expected a mapping, got {format_value(value)}")
            return {}
        return {str(name): item for name, item in value.items()}

    def _read_dtype(self, document: Mapping[str, Any], key: str) -> str | None:
        given = document.get(key)
        name = given.removeprefix("torch.") if isinstance(given, str) else given
        if name is None or name in _DTYPES:
            return name
        self._refuse(key, f"expected one of {', '.join(_DTYPES)}, got {format_value(given)}")
        return None

    def _read_tokens(self, document: Mapping[str, Any]) -> Tokens | None:
        plain, options = document.get("tokenizer_source"), document.get("tokenizer")
        if options is None:
            return None if plain is None else self._make_tokens(plain, None, "tokenizer_source")
        if plain is not None:
            self._refuse("tokenizer", "expected one of tokenizer and tokenizer_source, got both")
        options = self._read_mapping(options, "tokenizer")
        self._check_keys(options, ("source", "tokens", "pad_to_multiple_of"), "tokenizer.")
        if options.get("tokens"):
            reason = "rows of single tokens cannot be chosen, only the pool's new_rows"
            self._refuse("tokenizer.tokens", reason)
        step = options.get("pad_to_multiple_of")
        if step is not None and (not isinstance(step, int) or step < 1):
            reason = f"expected a positive number, got {format_value(step)}"
            self._refuse("tokenizer.pad_to_multiple_of", reason)
            step = None
        return self._make_tokens(options.get("source", "union"), step, "tokenizer.source")

    def _make_tokens(self, source: object, step: int | None, key: str) -> Tokens | None:
        if source in ("union", "base"):
            return Tokens(str(source), step, self._prefix + key)
        model = self._read_reference(source, key)
        return None if model is None else Tokens(model, step, self._prefix + key)
