"""Templates and tokenizers that exceed a limit, fail or lie: errors name the model and file."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import TypeAdapter

from fusion_core.errors import CheckpointError, RecipeError
from pools_lm.config import LanguageConfig
from pools_lm.confined import client
from pools_lm.confined import tokenizer as confined_tokenizer
from pools_lm.confined.client import split_batches
from pools_lm.confined.tokenizer import ConfinedTokenizer
from pools_lm.pools import CausalPool
from pools_lm.tasks.config import LanguageTasksConfig
from pools_lm.tasks.pool import LanguageTasks
from pools_lm.vocabularies import read_vocabulary

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MESSAGE = [{"role": "user", "content": "hello"}]


@pytest.fixture
def _one_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit work to one second after the child has started."""
    for module, name in ((confined_tokenizer, "RENDERING"), (client, "TOKENIZING")):
        monkeypatch.setattr(module, name, replace(getattr(module, name), seconds=1.0))


@pytest.fixture
def saved(tiny: Any, tmp_path: Path) -> Callable[..., dict[str, Path]]:
    """Return a function that saves a changed tokenizer and returns its files."""

    def save(template: str | None = None, **changes: Any) -> dict[str, Path]:
        folder = tmp_path / "base"
        tiny.tokenizer().save_pretrained(folder)
        if template is not None:
            (folder / "chat_template.jinja").write_text(template)
        content = json.loads((folder / "tokenizer.json").read_text())
        (folder / "tokenizer.json").write_text(json.dumps({**content, **changes}))
        return {path.name: path for path in folder.iterdir()}

    return save


LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.usefixtures("_one_second")
def test_an_endless_template_is_named(saved: Callable[..., dict[str, Path]]) -> None:
    tokenizer = ConfinedTokenizer.of(saved(LOOPS), "models/base")
    message = (
        r"^models/base: rendering its chat template \(chat_template.jinja\) took more than 1 sec"
    )
    with pytest.raises(CheckpointError, match=message) as refused:
        tokenizer.render([MESSAGE])
    assert "task_pool.chat=false" in str(refused.value)
    assert tokenizer.encode(["the fox"], special=False), "the child is restarted"


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ 'x' * 3000000000 }}", "took more memory than allowed"),
        ("{{ 'x' * 30000000 }}", "made more than 16 MB"),
    ],
)
def test_a_template_that_writes_too_much_is_named(
    saved: Callable[..., dict[str, Path]], template: str, message: str
) -> None:
    with pytest.raises(CheckpointError, match=rf"\(chat_template.jinja\) {message}"):
        ConfinedTokenizer.of(saved(template), "models/base").render([MESSAGE])


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('never') }}", "{% for %}", "{{ nobody.knows.this }}"]
)
def test_a_failing_template_is_named(saved: Callable[..., dict[str, Path]], template: str) -> None:
    tokenizer = ConfinedTokenizer.of(saved(template), "models/base")
    with pytest.raises(RecipeError, match=r"chat_template.jinja\) refuses the conversation"):
        tokenizer.render([MESSAGE])


@pytest.mark.thorough
@pytest.mark.usefixtures("_one_second")
def test_an_endless_regular_expression_is_named(saved: Callable[..., dict[str, Path]]) -> None:
    pattern = {"Regex": "(x+x+)+y"}
    split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    files = saved(pre_tokenizer=split)
    message = r"models/base: work by its tokenizer \(tokenizer.json\) "
    with pytest.raises(CheckpointError, match=message):
        ConfinedTokenizer.of(files, "models/base").encode(["x" * 50_000], special=False)
    with pytest.raises(CheckpointError, match=message):
        read_vocabulary(files, "models/base").tokenize(["x" * 50_000])


@pytest.mark.thorough
def test_an_invalid_answer_is_refused(saved: Callable[..., dict[str, Path]]) -> None:
    tokenizer_client = ConfinedTokenizer.of(saved(), "models/base").client
    numbers = TypeAdapter[list[int] | None](list[int] | None)
    with pytest.raises(CheckpointError, match="gave an invalid answer"):
        tokenizer_client.ask("decode", {"rows": [[1]]}, numbers, client.TOKENIZING)
    with pytest.raises(CheckpointError, match="gave 1 answers for 2 texts"):
        tokenizer_client.ask_batch(
            "decode", {"rows": [[1]]}, TypeAdapter[list[str] | None](list[str] | None), 2
        )


def test_unreadable_files_are_named(saved: Callable[..., dict[str, Path]]) -> None:
    files = saved(model={"type": "none"})
    with pytest.raises(CheckpointError, match="unreadable tokenizer or configuration"):
        ConfinedTokenizer.of(files, "models/base")
    with pytest.raises(CheckpointError, match="a: unreadable tokenizer"):
        read_vocabulary(files, "a")


def test_a_tokenizer_without_a_vocabulary_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    files = {"config.json": tmp_path / "config.json"}
    with pytest.raises(CheckpointError, match=r"needs one of the files .*tokenizer.json"):
        ConfinedTokenizer.of(files, "models/base")


@pytest.mark.usefixtures("_one_second")
def test_check_tries_the_template(tiny: Any, tmp_path: Path) -> None:
    path = tiny.save(tmp_path / "base", tiny.live("llama", 0), tiny.tokenizer())
    (tmp_path / "base" / "chat_template.jinja").write_text(LOOPS)
    (tmp_path / "test.jsonl").write_text('{"question": "a", "choices": ["b", "c"], "answer": 0}')
    data = {"kind": "choice", "test": str(tmp_path / "test.jsonl")}
    tasks = LanguageTasks(LanguageTasksConfig(datasets={"choice": data}))
    bound = tasks.bind(CausalPool(LanguageConfig(base=path, models={"a": path})))
    with pytest.raises(CheckpointError, match=f"task 'choice': {path}: rendering its chat templ"):
        bound.check()


def test_batches_of_texts_are_tokenized_like_single_texts(
    saved: Callable[..., dict[str, Path]],
) -> None:
    tokenizer = ConfinedTokenizer.of(saved(), "models/base")
    texts = ["the", "quick brown", "", "fox " * 50] * 300
    one_by_one = {text: tokenizer.encode([text], special=True)[0] for text in set(texts)}
    assert tokenizer.encode(texts, special=True) == [one_by_one[text] for text in texts]
    parts = list(split_batches([400_000, 200_000, 900_000, *[1] * 1001]))
    assert [(part.start, part.stop) for part in parts] == [
        (0, 1),
        (1, 2),
        (2, 3),
        (3, 1003),
        (1003, 1004),
    ]
