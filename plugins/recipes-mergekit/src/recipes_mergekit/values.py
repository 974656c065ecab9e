"""Values of a configuration that several of its parts have: mappings, and models.

mergekit ignores keys that it does not know. Here a key that resembles a known one is a problem, and
any other one a warning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusion_core.commands import format_value, similar_names
from recipes_mergekit.configuration import Reference

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from recipes_import import ImportFindings


#: Parameters that a model may set, and parameters of the whole merge, over all methods.
OF_MODELS = frozenset({"weight", "density", "gamma", "epsilon", "scale"})
OF_MERGES = frozenset(
    {
        *("normalize", "rescale", "lambda", "int8_mask", "t", "select_topk", "filter_wise"),
        *("nuslerp_row_wise", "nuslerp_flatten", "normalize_weights", "eps", "max_iter", "tol"),
        *("r", "alpha"),
    }
)
PARAMETERS = OF_MODELS | OF_MERGES


class ValueReader:
    """Reads values of one document, and records its problems."""

    def __init__(self, findings: ImportFindings, prefix: str = "") -> None:
        self._findings, self._prefix = findings, prefix

    def _refuse(self, key: str, reason: str) -> None:
        self._findings.refuse(self._prefix + key, reason)

    def _check_keys(self, mapping: Mapping[str, Any], known: Collection[str], key: str) -> None:
        for name in mapping.keys() - {*known}:
            if "parameters" in known and similar_names(name, PARAMETERS - {"int8_mask"}):
                self._refuse(f"{key}{name}", "unknown key; did you mean one under parameters?")
            else:
                self._findings.report_unknown(f"{self._prefix}{key}{name}", known)

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
                    reason = (
                        "mergekit then merges only the tensors that this class has, and writes it "
                        "to config.json; without this key, all tensors are merged by name"
                    )
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
