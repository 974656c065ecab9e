"""Vision-language models are measured on text, alone and as merges of their language part."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from typer.testing import CliRunner
from vision_models import VISION, write_models

from fusion_core import run_fusion
from fusion_core.cli.app import app
from fusion_core.errors import CheckpointError, RecipeError

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.plugins, pytest.mark.filterwarnings("ignore")]

SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
WORDS = [*SPECIAL.values(), *(f"w{number}" for number in range(17))]
IMAGE = [f"<image{number}>" for number in range(4)]
ROWS = {kind: config.get_text_config().vocab_size for kind, (_, config) in VISION.items()}


def write_tokenizer(folder: Path, words: list[str]) -> None:
    level = models.WordLevel({word: row for row, word in enumerate(words)}, unk_token="w0")
    tokenizer = Tokenizer(level)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)
    fast.save_pretrained(folder)


@pytest.fixture(scope="module", params=["llava", "qwen2_vl"])
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the kind, and the folder of models with tokenizers and texts."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    write_models(name, folder)
    for model in ("language", "language-math", "vision-language"):
        words = [*WORDS, *IMAGE][: ROWS[name]] if model == "vision-language" else WORDS
        write_tokenizer(folder / model, words)
    draw = torch.Generator().manual_seed(0)
    lines = torch.randint(3, 20, (4, 9), generator=draw).tolist()
    texts = [json.dumps({"text": " ".join(WORDS[token] for token in line)}) for line in lines]
    (folder / "texts.jsonl").write_text("\n".join(texts))
    return name, folder


def tasks_of(folder: Path) -> dict[str, Any]:
    datasets = {"math": {"kind": "perplexity", "test": str(folder / "texts.jsonl")}}
    return {"name": "lm-tasks", "datasets": datasets}


def parts_of(folder: Path) -> dict[str, Any]:
    experts = {"math": str(folder / "language-math"), "vision": str(folder / "vision-language")}
    return {"base": str(folder / "language"), "models": experts, "rest": "vision"}


def measure(pool: dict[str, Any], folder: Path, **options: Any) -> Any:
    run = {"algorithm": "task-arithmetic", "output": {"path": None}, **options, "model_pool": pool}
    result = run_fusion({**run, "task_pool": tasks_of(folder)})
    assert result.report is not None
    return result.report


def language_part(kind: str, vision: Path) -> Any:
    """Return the language part of a vision-language model as a language model of its own."""
    whole = transformers.AutoModelForImageTextToText.from_pretrained(vision).state_dict()
    config, text = VISION[kind][0].to_dict(), VISION[kind][1].get_text_config()
    config |= {name: getattr(text, name) for name in ("vocab_size", "rms_norm_eps")}
    config = type(VISION[kind][0])(**config)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    names = {n: n.replace("model.", "model.language_model.", 1) for n in model.state_dict()}
    model.load_state_dict({name: whole[live] for name, live in names.items()})
    return model.eval()


@torch.no_grad()
def bits_per_byte(model: Any, folder: Path) -> float:
    texts = [json.loads(line)["text"] for line in (folder / "texts.jsonl").read_text().splitlines()]
    bits = 0.0
    for text in texts:
        tokens = torch.tensor([WORDS.index("<s>"), *map(WORDS.index, text.split())])
        scores = model(tokens[None, :-1]).logits[0]
        bits += float(torch.nn.functional.cross_entropy(scores, tokens[1:], reduction="sum"))
    return bits / math.log(2) / sum(map(len, texts))


def test_merges_of_a_language_part_are_measured_on_text(kind: Any, tmp_path: Path) -> None:
    name, folder = kind
    pool = {"name": "vision-language", **parts_of(folder)}
    options = {"alignment": {"vocab": "pad"}, "output": {"path": str(tmp_path / "out")}}
    report = measure(pool, folder, **options)
    expected = bits_per_byte(language_part(name, tmp_path / "out"), folder)
    assert report.tasks["math"]["bits_per_byte"] == pytest.approx(expected, rel=1e-5)
    if name == "qwen2_vl":  # its tower adds no tokens, so the parts are the language models
        for model, path in (("base", "language"), ("experts", "language-math")):
            alone = transformers.AutoModelForCausalLM.from_pretrained(
                folder / path, rms_norm_eps=VISION[name][1].get_text_config().rms_norm_eps
            )
            measured = getattr(report.reference, model)["math"]["bits_per_byte"]
            assert measured == pytest.approx(bits_per_byte(alone.eval(), folder), rel=1e-5)


def test_whole_vision_language_models_are_merged_and_measured(kind: Any, tmp_path: Path) -> None:
    _, folder = kind
    path = str(folder / "vision-language")
    pool = {"name": "vision-language", "base": path, "models": {"math": path}}
    report = measure(pool, folder, output={"path": str(tmp_path / "out")})
    assert report.tasks["math"] == report.reference.base["math"]
    merged, base = (load_file(f"{f}/model.safetensors") for f in (tmp_path / "out", path))
    assert all(torch.equal(merged[name], value) for name, value in base.items())
    done = CliRunner().invoke(app, ["smoke", path, "--prompt", "w1 w2", "--json"])
    assert "w" in done.stdout, done.exception


def test_language_pools_say_which_pool_merges_parts(kind: Any) -> None:
    _, folder = kind
    with pytest.raises(RecipeError, match="merges a part of another kind") as caught:
        measure({"name": "causal-lm", **parts_of(folder)}, folder)
    assert "'vision-language'" in (caught.value.hint or "")
    pool = {"name": "vision-language", **parts_of(folder), "tokenizer": "union"}
    with pytest.raises(RecipeError, match="tokenizer, tokens and pad_to_multiple_of conflict"):
        measure(pool, folder)


def test_a_language_model_is_no_vision_language_model(kind: Any) -> None:
    _, folder = kind
    pool = {"name": "vision-language", "base": str(folder / "language")}
    with pytest.raises(
        CheckpointError, match="cannot build an AutoModelForImageTextToText"
    ) as caught:
        measure({**pool, "models": {"math": str(folder / "language-math")}}, folder)
    assert len(str(caught.value)) < 500  # without the list of all models that transformers has
    assert "fuse list pools" in (caught.value.hint or "")
