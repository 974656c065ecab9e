"""The text task pool of `fuse new-plugin`, tried as it is on a real encoder and its tokenizer."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast

from fusion_core import ComponentConfig, ModelPool, Split, run_fusion
from fusion_core.errors import RecipeError
from fusion_core.weights import CheckpointSource, WeightSource
from fusion_testing import tiny_pool
from fusion_testing.skeleton import Kind, write_plugin

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import nn

pytestmark = pytest.mark.plugins

TASKS = ("weather", "food")


class Encoders(ModelPool[ComponentConfig]):
    """Directories of BERT: a base, and an expert for each task."""

    config_class = ComponentConfig

    def __init__(self, root: Path) -> None:
        super().__init__(ComponentConfig())
        self._root = root
        self.base = CheckpointSource(root / "base")
        self.experts = {name: CheckpointSource(root / name) for name in TASKS}

    def build(self, weights: WeightSource, **options: Any) -> nn.Module:
        del options
        model = BertModel(BertConfig.from_pretrained(self._root / "base")).eval()
        model.load_state_dict(weights.state_dict())
        return model

    def assets(self, *, dtype: torch.dtype | None = None) -> Mapping[str, bytes | Path]:
        del dtype
        return {path.name: path for path in (self._root / "base").glob("*.json")}


@dataclass(frozen=True)
class Texts:
    """The generated module, and the encoders that it is tried on."""

    module: Any
    encoders: Encoders
    base: Path

    def tasks(self, **options: Any) -> Any:
        return self.module.TryTextsTasks(self.module.TryTextsConfig(examples=40, **options))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Texts]:
    root = tmp_path_factory.mktemp("texts")
    written = write_plugin("fusion-try-texts", Kind.TEXT_TASK_POOL, root / "plugin")
    sys.path.insert(0, str(written / "src"))
    try:
        module = import_module("fusion_try_texts.tasks")
        for seed, name in enumerate(("base", *TASKS)):
            save_encoder(root / name, seed, module)
        yield Texts(module, Encoders(root), root / "base")
    finally:
        sys.path.remove(str(written / "src"))
        for name in [module for module in sys.modules if module.startswith("fusion_try_texts")]:
            del sys.modules[name]


def save_encoder(directory: Path, seed: int, module: Any) -> None:
    backend = Tokenizer(models.BPE(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    words = [word for task in module.WORDS.values() for group in task for word in group]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.BpeTrainer(vocab_size=90, special_tokens=special, show_progress=False)
    backend.train_from_iterator([*words, *module.FILLERS], trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(directory)
    config = BertConfig(
        vocab_size=90,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        BertModel(config).save_pretrained(directory)


def test_texts_of_several_lengths_are_padded_and_masked(texts: Texts) -> None:
    task = texts.tasks().bind(texts.encoders)["weather"]
    batch = task.batch(0, size=8, split=Split.TRAIN, seed=0)
    assert batch.mask is not None
    lengths = batch.mask.sum(dim=1)
    assert int(lengths.min()) < int(lengths.max()) == batch.mask.shape[1]


def test_what_is_measured_is_what_transformers_computes_text_by_text(texts: Texts) -> None:
    pool = texts.encoders
    task = texts.tasks().bind(pool)["food"]
    model = AutoModel.from_pretrained(texts.base)
    tokenizer = AutoTokenizer.from_pretrained(texts.base)
    strings, labels = task._read_texts(Split.TEST)  # noqa: SLF001 - where an author's data is read
    with torch.no_grad():
        features = [
            model(**tokenizer(string, return_tensors="pt")).last_hidden_state.mean(dim=1)
            for string in strings
        ]
    right = task.head(torch.cat(features)).argmax(dim=1).eq(labels).double().mean()
    assert task.evaluate(pool.build(pool.base)) == {"accuracy": float(right)}
    assert 0 < right < 1


@pytest.mark.parametrize("objective", ["entropy", "teacher"])
def test_adamerging_learns_on_texts(texts: Texts, tmp_path: Path, objective: str) -> None:
    result = run_fusion(
        algorithm={"name": "adamerging", "objective": objective, "steps": 3, "batch_size": 8},
        model_pool=texts.encoders,
        task_pool=texts.tasks(),
        output=tmp_path / "out",
    )
    assert result.report is not None
    assert set(result.report.tasks) == set(result.report.reference.experts) == set(TASKS)
    assert len((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()) == 3


def test_models_without_a_tokenizer_are_refused_before_anything_runs(texts: Texts) -> None:
    with pytest.raises(RecipeError, match=r"the model pool has no tokenizer\.json"):
        run_fusion(algorithm="simple-average", model_pool=tiny_pool(), task_pool=texts.tasks())
