"""Options of a pool that follow from the tokenizer and the chat template of a merge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from recipes_import import ImportFindings
    from recipes_mergekit.configuration import Configuration, Reference, TokenRow, Tokens
    from recipes_mergekit.models import Models


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of the result, as a configuration states them."""

    configuration: Configuration
    models: Models
    findings: ImportFindings

    def extend_pool(self, pool: Mapping[str, Any], algorithm: Mapping[str, Any]) -> dict[str, Any]:
        """Return a pool that knows tokens, if there is anything to know."""
        tokens, template = self.configuration.tokens, self.configuration.chat_template
        if tokens is None and template is None:
            return dict(pool)
        options: dict[str, Any] = {"name": "causal-lm"}
        if tokens is not None:
            options |= self._choose_tokens(tokens, pool)
            if algorithm["name"] == "stack":
                # the rows are those of one model, and zeros for tokens that it does not know
                options["new_rows"] = "zero"
        if template is not None:
            options["chat_template"] = template
            if template == "auto" and any(model.adapter for model in self.models.names):
                reason = "auto counts the template of an adapter, where mergekit counts its base's"
                self.findings.warn(f"{self.configuration.prefix}chat_template", reason)
        return {**options, **pool}

    def _choose_tokens(self, tokens: Tokens, pool: Mapping[str, Any]) -> dict[str, Any]:
        source = tokens.source
        if source == "base" and "base" not in pool and self.configuration.base in self.models.names:
            source = self.configuration.base
        if source == "base" and "base" not in pool:
            reason = "needs base_model: mergekit takes the tokenizer of any model without one"
            self.findings.refuse(tokens.key, reason)
        options: dict[str, Any] = {
            "tokenizer": source if isinstance(source, str) else self._name(source, pool, tokens.key)
        }
        if tokens.rows:
            key = f"{self.configuration.prefix}tokenizer.tokens"
            options["tokens"] = {
                token: self._make_row(row, pool, f"{key}.{token}.source")
                for token, row in tokens.rows.items()
            }
        if tokens.pad_to_multiple_of is not None:
            options["pad_to_multiple_of"] = tokens.pad_to_multiple_of
        return options

    def _make_row(self, row: TokenRow, pool: Mapping[str, Any], key: str) -> dict[str, Any]:
        options: dict[str, Any] = {}
        if row.model is not None:
            options["model"] = self._name(row.model, pool, key)
        if row.token is not None:
            options["token" if isinstance(row.token, str) else "id"] = row.token
        return {**options, "force": True} if row.force else options

    def _name(self, model: Reference, pool: Mapping[str, Any], key: str) -> str:
        """Return the name of a model in the pool."""
        name = self.models.names.get(model, "")
        if "base" in pool and model == self.configuration.base:
            return "base"
        if name not in pool["models"]:
            self.findings.refuse(key, f"{model} is none of the merged models")
        return name
