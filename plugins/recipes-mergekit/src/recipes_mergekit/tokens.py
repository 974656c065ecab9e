"""Reading of the tokenizer and the chat template of a result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusion_core.commands import format_value
from recipes_mergekit.configuration import TokenRow, Tokens
from recipes_mergekit.values import ValueReader

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Chat templates that have names.
_FORMATS = ("auto", "alpaca", "chatml", "exaone", "llama3", "mistral")


class TokenReader(ValueReader):
    """Reads what one document says about tokens."""

    def read_template(self, document: Mapping[str, Any]) -> str | None:
        """Return the name or the text of the chat template."""
        template = document.get("chat_template")
        if template is None:
            return None
        if isinstance(template, str) and (template in _FORMATS or "{" in template):
            return template
        expected = f"expected one of {', '.join(_FORMATS)} or a Jinja template"
        self._refuse("chat_template", f"{expected}, got {format_value(template)}")
        return None

    def read_tokens(self, document: Mapping[str, Any]) -> Tokens | None:
        """Return the tokenizer, from either of two keys."""
        plain, options = document.get("tokenizer_source"), document.get("tokenizer")
        if options is None:
            return None if plain is None else self._make_tokens(plain, {}, None, "tokenizer_source")
        if plain is not None:
            self._refuse("tokenizer", "expected one of tokenizer and tokenizer_source, got both")
        options = self._read_mapping(options, "tokenizer")
        self._check_keys(options, ("source", "tokens", "pad_to_multiple_of"), "tokenizer.")
        rows: dict[str, TokenRow] = {}
        for token, entry in self._read_mapping(options.get("tokens"), "tokenizer.tokens").items():
            row = self._read_row(entry, f"tokenizer.tokens.{token}")
            if row is not None:
                rows[token] = row
        step = options.get("pad_to_multiple_of")
        if step is not None and (type(step) is not int or step < 1):
            reason = f"expected a positive number, got {format_value(step)}"
            self._refuse("tokenizer.pad_to_multiple_of", reason)
            step = None
        return self._make_tokens(options.get("source", "union"), rows, step, "tokenizer.source")

    def _read_row(self, given: object, key: str) -> TokenRow | None:
        entry = self._read_mapping(given, key)
        self._check_keys(entry, ("source", "force"), f"{key}.")
        source, force = entry.get("source"), entry.get("force", False)
        if not isinstance(force, bool):
            self._refuse(f"{key}.force", f"expected true or false, got {format_value(force)}")
            return None
        token: Any = None
        match source:
            case None:
                reason = "missing: a model, or a mapping of kind zero or model_token"
                self._refuse(f"{key}.source", reason)
                return None
            case {"kind": "zero"}:
                return TokenRow(None, None, force)
            case {"kind": "model_token", "model": model, **rest} if _is_token(rest):
                source = model
                token = rest.get("token", rest.get("token_id"))
            case {"kind": _}:
                expected = "kind: zero, or kind: model_token with a model and a token or token_id"
                self._refuse(f"{key}.source", f"expected {expected}, got {format_value(source)}")
                return None
        reference = self._read_reference(source, f"{key}.source")
        return None if reference is None else TokenRow(reference, token, force)

    def _make_tokens(
        self, source: object, rows: Mapping[str, TokenRow], step: int | None, key: str
    ) -> Tokens | None:
        if source in ("union", "base"):
            return Tokens(str(source), rows, step, self._prefix + key)
        model = self._read_reference(source, key)
        return None if model is None else Tokens(model, rows, step, self._prefix + key)


def _is_token(options: Mapping[Any, Any]) -> bool:
    """Tell whether options are one token, by its text or its number."""
    match options:
        case {"token": str()} | {"token_id": int()}:
            return len(options) == 1
    return False
