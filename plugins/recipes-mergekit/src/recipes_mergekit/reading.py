"""Reading of a configuration from YAML."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusion_core.commands import format_value
from recipes_mergekit.configuration import Configuration, Slice, Source
from recipes_mergekit.tokens import TokenReader
from recipes_mergekit.values import ValueReader

if TYPE_CHECKING:
    from collections.abc import Mapping

    from recipes_mergekit.configuration import Reference

_KEYS = (
    *("merge_method", "models", "slices", "modules", "base_model", "parameters", "dtype"),
    *("out_dtype", "tokenizer_source", "tokenizer", "chat_template", "name"),
)
_DTYPES = ("bfloat16", "float16", "float32", "float64")


class Reader(ValueReader):
    """Reads one document, and records its problems."""

    def read(self, document: Mapping[str, Any]) -> Configuration | None:
        """Return the configuration, or None if it has problems that hide others."""
        self._check_keys(document, _KEYS, "")
        method = document.get("merge_method")
        base = self._read_reference(document.get("base_model"), "base_model")
        slices, modules = self._read_slices(document, base), self._read_modules(document, base)
        if not isinstance(method, str):
            self._refuse("merge_method", f"expected a name, got {format_value(method)}")
        tokens = TokenReader(self._findings, self._prefix)
        configuration = Configuration(
            str(method),
            base,
            tuple(slices),
            self._read_mapping(document.get("parameters"), "parameters"),
            self._read_dtype(document, "dtype"),
            self._read_dtype(document, "out_dtype"),
            tokens.read_tokens(document),
            tokens.read_template(document),
            modules,
            self._prefix,
        )
        parts = configuration.parts
        is_complete = parts and all(part.sources for part in parts) and isinstance(method, str)
        return configuration if is_complete else None

    def _read_slices(self, document: Mapping[str, Any], base: Reference | None) -> list[Slice]:
        """Return the slices. Whole models are one."""
        given = [name for name in ("models", "slices", "modules") if document.get(name)]
        if len(given) != 1:
            expected = "expected one of models, slices and modules"
            self._refuse("models", f"{expected}, got {' and '.join(given) or 'none'}")
            return []
        if given == ["modules"]:
            return []
        (key,) = given
        entries = document[key]
        if not isinstance(entries, list):
            self._refuse(key, f"expected a list, got {format_value(entries)}")
            return []
        if key == "models":
            return [self._read_models(entries, key, base, {})]
        return [self._read_slice(entry, f"{key}.{n}") for n, entry in enumerate(entries)]

    def _read_modules(
        self, document: Mapping[str, Any], base: Reference | None
    ) -> dict[str, Slice]:
        """Return the models of every module, with the module's parameters."""
        modules: dict[str, Slice] = {}
        for name, given in self._read_mapping(document.get("modules"), "modules").items():
            key = f"modules.{name}"
            entry = self._read_mapping(given, key)
            self._check_keys(entry, ("models", "slices", "parameters"), f"{key}.")
            if entry.get("slices"):
                self._refuse(f"{key}.slices", "no counterpart; list the models under models")
            models = entry.get("models")
            if not isinstance(models, list):
                self._refuse(f"{key}.models", f"expected a list, got {format_value(models)}")
                continue
            parameters = self._read_mapping(entry.get("parameters"), f"{key}.parameters")
            modules[name] = self._read_models(models, f"{key}.models", base, parameters)
        return modules

    def _read_models(
        self, entries: list[Any], key: str, base: Reference | None, parameters: Mapping[str, Any]
    ) -> Slice:
        """Return whole models as one slice. A base that is not listed is the last one."""
        sources = self._read_sources(entries, key, ("model", "parameters"))
        if base is not None and all(source.model != base for source in sources):
            sources = (*sources, Source(base, None, {}))
        return Slice(sources, None, parameters, key)

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

    def _read_dtype(self, document: Mapping[str, Any], key: str) -> str | None:
        given = document.get(key)
        name = given.removeprefix("torch.") if isinstance(given, str) else given
        if name is None or name in _DTYPES:
            return name
        self._refuse(key, f"expected one of {', '.join(_DTYPES)}, got {format_value(given)}")
        return None
