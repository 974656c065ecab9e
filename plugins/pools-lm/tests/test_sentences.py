"""Sentence tasks: all kinds of heads, and similarities, compared with other libraries."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    RobertaConfig,
)

from fusion_adapting import (
    apply_adapter,
    attach_adapter,
    find_feature_module,
    moments,
    squared_gradients,
)
from fusion_core import AlignmentPolicy, FeatureTask, Split
from fusion_core.commands import Subject
from fusion_core.errors import FusionError, RecipeError
from pools_lm.config import LanguageConfig
from pools_lm.pools import ClassificationPool, EncoderPool
from pools_lm.tasks.classification import EmbeddingTask
from pools_lm.tasks.sentence_config import ClassificationConfig, SimilarityConfig
from pools_lm.tasks.sentences import ClassificationTasks, SimilarityTasks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fusion_core import ModelPool

Tiny = Any
Rows = list[dict[str, Any]]


def rows_of(tiny: Tiny, count: int = 24, *, seed: int = 0) -> Rows:
    """Return lines with texts of 1 to 30 words and three classes."""
    drawn, words = random.Random(seed), " ".join(tiny.texts).split()
    return [
        {
            "text": " ".join(drawn.choices(words, k=drawn.randint(1, 30))),
            "other": " ".join(drawn.choices(words, k=drawn.randint(1, 30))),
            "label": drawn.randrange(3),
            "score": drawn.random(),
        }
        for _ in range(count)
    ]


def write(path: Path, rows: Rows) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


@dataclass
class Workshop:
    """Makes tasks from lines."""

    tiny: Tiny
    directory: Path

    def classify(
        self, pool: ModelPool[Any], *, rows: Rows, train: Rows | None = None, **options: Any
    ) -> ClassificationTasks:
        """Return a task `a` on these lines; options go to the task if it has them."""
        data = {"test": write(self.directory / "test.jsonl", rows)}
        if train:
            data["train"] = write(self.directory / "train.jsonl", train)
        task_options = {
            name: options.pop(name) for name in ("pair", "names", "label") if name in options
        }
        config = ClassificationConfig(
            datasets={"a": {**data, **task_options}}, batch_size=5, **options
        )
        return ClassificationTasks(config).bind(pool)

    def similar(self, pool: ModelPool[Any], rows: Rows, **options: Any) -> SimilarityTasks:
        data = {"test": write(self.directory / "test.jsonl", rows)}
        fields = {"first": "{text}", "second": "{other}"}
        config = SimilarityConfig(datasets={"a": {**data, **fields}}, batch_size=5, **options)
        return SimilarityTasks(config).bind(pool)


@pytest.fixture
def workshop(tiny: Tiny, tmp_path: Path) -> Workshop:
    return Workshop(tiny, tmp_path)


@pytest.fixture
def classifiers(models_of: Callable[..., Any]) -> ClassificationPool:
    return ClassificationPool(LanguageConfig(**models_of("bert", "sequence-classification")))


@pytest.fixture
def encoders(models_of: Callable[..., Any]) -> EncoderPool:
    return EncoderPool(LanguageConfig(**models_of("bert", "sentence-encoder")))


def accuracy_of(directory: str, rows: Rows, second: str | None = None) -> float:
    """Return transformers' accuracy, one text at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    right = 0
    for row in rows:
        pair = None if second is None else row[second]
        tokens = tokenizer(row["text"], pair, truncation=True, max_length=64, return_tensors="pt")
        with torch.no_grad():
            right += int(model(**tokens).logits.argmax()) == row["label"]
    return right / len(rows)


def measure(
    tasks: Any,
    pool: ModelPool[Any],
    source: Any = None,
    dtype: torch.dtype = torch.float32,
) -> dict[str, float]:
    model = pool.build(pool.base if source is None else source, dtype=dtype)
    actual: dict[str, float] = tasks.measure(Subject.of(model))["a"]
    return actual


@pytest.mark.parametrize("pair", [None, "other"])
def test_a_models_own_head_matches_transformers(
    workshop: Workshop, classifiers: ClassificationPool, pair: str | None
) -> None:
    rows = rows_of(workshop.tiny, 40)
    tasks = workshop.classify(classifiers, rows=rows, pair=pair and f"{{{pair}}}")
    for model in ("base", "a"):
        expected = accuracy_of(str(workshop.directory / model), rows, pair)
        assert 0 < expected < 1
        assert measure(tasks, classifiers, classifiers.by_name[model]) == {"accuracy": expected}


@pytest.fixture
def models_with_own_heads(tiny: Tiny, tmp_path: Path) -> Callable[..., EncoderPool]:
    """Save an encoder without a head, and an expert whose head has four classes."""

    def make(family: str) -> EncoderPool:
        kind, changes = {"bert": ("words", {}), "gpt2": ("bytes", {})}[family]
        tokenizer = tiny.tokenizer(kind)
        base = tiny.live(family, 0, pool="sentence-encoder", rows=len(tokenizer))
        expert = tiny.live(
            family, 1, pool="sequence-classification", rows=len(tokenizer), num_labels=4, **changes
        )
        paths = {"base": base, "a": expert}
        base, a = (tiny.save(tmp_path / name, live, tokenizer) for name, live in paths.items())
        return EncoderPool(LanguageConfig(base=base, models={"a": a}))

    return make


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_an_experts_head_fits_any_encoder(
    workshop: Workshop, models_with_own_heads: Callable[..., EncoderPool], family: str
) -> None:
    pool, rows = models_with_own_heads(family), rows_of(workshop.tiny, 40)
    tasks = workshop.classify(pool, rows=rows, head="expert")
    task, directory = tasks.adaptive("a"), str(workshop.directory / "a")
    whole = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    encoder = pool.build(without_head(pool, "a"))
    assert measure(tasks, pool, without_head(pool, "a")) == {
        "accuracy": accuracy_of(directory, rows)
    }
    batch = task.batch(0, size=6, split=Split.TEST, seed=0)
    with torch.no_grad():
        expected = whole(**whole_inputs(whole, batch.tensors)).logits
        torch.testing.assert_close(task.logits(encoder, batch), expected)
        assert not torch.equal(task.logits(pool.build(pool.base), batch), expected)
        half = task.logits(pool.build(without_head(pool, "a"), dtype=torch.bfloat16), batch)
        torch.testing.assert_close(half.float(), expected, rtol=0.05, atol=0.05)


def test_a_decoders_padding_is_dropped(
    workshop: Workshop, models_with_own_heads: Callable[..., EncoderPool]
) -> None:
    """A text may contain the pad token. transformers then reads the token before it."""
    pool, row = models_with_own_heads("gpt2"), {"text": "the old fox<pad>", "label": 0}
    task = workshop.classify(pool, rows=[row], head="expert").adaptive("a")
    assert isinstance(task, FeatureTask)
    directory = str(workshop.directory / "a")
    whole = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    tokens = AutoTokenizer.from_pretrained(directory)(row["text"], return_tensors="pt")
    assert tokens["input_ids"][0, -1] == whole.config.pad_token_id
    batch = task.batch(0, size=1, split=Split.TEST, seed=0)
    with torch.no_grad():
        actual = task.logits(pool.build(without_head(pool, "a")), batch)
        torch.testing.assert_close(actual, whole(**tokens).logits)


def whole_inputs(model: Any, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    mask = tensors["attention_mask"]
    ids = tensors["input_ids"].masked_fill(mask == 0, model.config.pad_token_id)
    return {"input_ids": ids, "attention_mask": mask}


def without_head(pool: EncoderPool, name: str) -> Any:
    """Return an expert without its head, as with `alignment.extra=drop`."""
    return align_pool(pool).experts[name]


def align_pool(pool: EncoderPool) -> EncoderPool:
    return pool.aligned(AlignmentPolicy(extra="drop", missing="base"))


def test_moments_and_gradients_work_with_an_experts_head(
    workshop: Workshop, models_with_own_heads: Callable[..., EncoderPool]
) -> None:
    pool = models_with_own_heads("bert")
    tasks = workshop.classify(pool, rows=rows_of(workshop.tiny), head="expert")
    ((_, actual),) = moments(align_pool(pool), tasks, samples=8, batch_size=4)
    assert "pooler.dense.weight" in actual
    assert actual["pooler.dense.weight"].count == 8
    ((_, squares),) = squared_gradients(align_pool(pool), tasks, samples=4, batch_size=4)
    assert set(squares) == set(pool.base.infos)
    assert all(square.isfinite().all() for square in squares.values())
    assert squares["encoder.layer.0.output.dense.weight"].any()


@pytest.mark.parametrize("classes", [2, 3])
def test_a_probe_matches_scikit_learn_and_sentence_transformers(
    workshop: Workshop, encoders: EncoderPool, classes: int
) -> None:
    train, rows = (rows_of(workshop.tiny, 60, seed=seed) for seed in (1, 2))
    for row in (*train, *rows):
        row["label"] = len(row["text"]) % classes
    tasks = workshop.classify(encoders, rows=rows, train=train)
    for name, source in encoders.by_name.items():
        probe, vectors = probe_of(workshop.directory / name, train, rows)
        expected = probe.score(vectors, [row["label"] for row in rows])
        assert measure(tasks, encoders, source) == {"accuracy": pytest.approx(expected)}
    task, base = tasks.adaptive("a"), encoders.build(encoders.base)
    assert isinstance(task, EmbeddingTask)
    probe, _ = probe_of(workshop.directory / "base", train, rows)
    batch = task.batch(0, size=6, split=Split.UNLABELED, seed=0)
    with torch.no_grad():
        vectors, scores = task.features(base, batch.inputs), task.logits(base, batch)
    expected = torch.tensor(probe.predict_proba(vectors.double().numpy()))
    torch.testing.assert_close(scores.softmax(1).double(), expected, rtol=1e-5, atol=1e-5)


def probe_of(directory: Path, train: Rows, rows: Rows) -> tuple[Any, Any]:
    """Return scikit-learn's logistic regression on a model's vectors, and those of `rows`."""
    library = SentenceTransformer(str(directory), device="cpu")
    train_vectors, vectors = (library.encode([r["text"] for r in part]) for part in (train, rows))
    linear = pytest.importorskip("sklearn.linear_model")
    probe = linear.LogisticRegression(tol=1e-10, max_iter=100_000)
    return probe.fit(train_vectors.astype("float64"), [row["label"] for row in train]), vectors


def test_the_nearest_name_is_the_class(workshop: Workshop, encoders: EncoderPool) -> None:
    names, rows = ["old forest", "tensor", "a text"], rows_of(workshop.tiny, 40)
    for row in rows:
        row["label"] = names[row["label"]]
    tasks = workshop.classify(encoders, rows=rows, head="names", names=names)
    library = SentenceTransformer(encoders.config.base, device="cpu")
    nearest = library.similarity(
        library.encode([row["text"] for row in rows]), library.encode(names)
    )
    right = [names[n] == row["label"] for n, row in zip(nearest.argmax(1), rows, strict=True)]
    actual: Any = measure(tasks, encoders)
    assert actual == {"accuracy": sum(right) / len(rows)}
    assert actual.outcomes == tuple(right)


def test_embeddings_accept_an_adapter(workshop: Workshop, encoders: EncoderPool) -> None:
    names = ["old forest", "tensor", "a text"]
    task: Any = workshop.classify(encoders, rows=rows_of(workshop.tiny), head="names", names=names)[
        "a"
    ]
    model = encoders.build(encoders.reference)
    batch = task.batch(0, size=6, split=Split.UNLABELED, seed=0)
    with torch.no_grad():
        plain = task.features(model, batch.inputs)
        module = find_feature_module(model, task, batch)
        assert module is not None
        down, up = torch.randn(2, plain.shape[1]), torch.randn(plain.shape[1], 2)
        attach_adapter(model, module, down, up)
        adapted = task.features(model, batch.inputs)
    torch.testing.assert_close(adapted, apply_adapter(plain, down, up))


MODES = ["mean", "cls", "max", "lasttoken", "mean_sqrt_len_tokens", "weightedmean", ("cls", "mean")]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("mode", MODES)
def test_similarities_match_sentence_transformers(
    workshop: Workshop, encoders: EncoderPool, mode: Any
) -> None:
    """In fp64: similarities of a tiny model are so close that rounding would change ranks."""
    width = 16 if isinstance(mode, str) else 32
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = [Pooling(16, pooling_mode=mode), Dense(width, 8), Normalize()]
    encoder = Transformer(encoders.config.base, max_seq_length=20)
    directory = str(workshop.directory / "st")
    prompts: Any = {"prompts": {"query": "the model "}, "default_prompt_name": "query"}
    SentenceTransformer(modules=[encoder, *parts], device="cpu", **prompts).save(directory)
    pool = EncoderPool(LanguageConfig(base=directory, models={"a": encoders.config.models["a"]}))
    rows = rows_of(workshop.tiny, 40)
    library = SentenceTransformer(directory, device="cpu").double()
    columns: Any = ([row[name] for row in rows] for name in ("text", "other", "score"))
    expected = EmbeddingSimilarityEvaluator(*columns)(library)["spearman_cosine"]
    actual = measure(workshop.similar(pool, rows), pool, dtype=torch.float64)
    assert actual == {"spearman": pytest.approx(expected, abs=1e-9)}
    without = workshop.similar(pool, rows, prompt="")
    assert measure(without, pool, dtype=torch.float64) != actual
    with pytest.raises(RecipeError, match=r"unknown prompt 'qeury'"):
        workshop.similar(pool, rows, prompt="qeury")


@pytest.mark.parametrize("family", ["t5", "llama", "gpt2"])
def test_a_plain_encoder_uses_the_mean_over_tokens(
    workshop: Workshop, models_of: Callable[..., Any], family: str
) -> None:
    pool = EncoderPool(LanguageConfig(**models_of(family, "sentence-encoder")))
    rows = rows_of(workshop.tiny, 40)
    library = SentenceTransformer(pool.config.base, device="cpu")
    columns: Any = ([row[name] for row in rows] for name in ("text", "other", "score"))
    expected = EmbeddingSimilarityEvaluator(*columns)(library)["spearman_cosine"]
    actual = measure(workshop.similar(pool, rows), pool)
    assert actual == {"spearman": pytest.approx(expected, abs=1e-9)}


def test_copies_of_a_pair_tie_in_any_batch(workshop: Workshop, encoders: EncoderPool) -> None:
    copies = [{**rows_of(workshop.tiny)[0], "score": score} for score in range(24)]
    assert measure(workshop.similar(encoders, copies), encoders) == {"spearman": 0}


def test_pairs_of_equal_sentences_tie(workshop: Workshop, encoders: EncoderPool) -> None:
    equal = [{**row, "other": row["text"]} for row in rows_of(workshop.tiny)]
    assert measure(workshop.similar(encoders, equal), encoders) == {"spearman": 0}


def test_heads_of_an_encoders_checkpoint_are_ignored(
    workshop: Workshop, models_with_own_heads: Callable[..., EncoderPool]
) -> None:
    pool, rows = models_with_own_heads("bert"), rows_of(workshop.tiny)
    tasks = workshop.similar(pool, rows)
    assert measure(tasks, pool, pool.experts["a"]) == measure(tasks, pool, without_head(pool, "a"))


@pytest.mark.parametrize("limit", [5, 512], ids=["of tokenizer below", "of tokenizer above"])
def test_old_settings_are_read(workshop: Workshop, encoders: EncoderPool, limit: int) -> None:
    base = Path(encoders.config.base)
    tokenizer = json.loads((base / "tokenizer_config.json").read_text())
    limited = {**tokenizer, "model_max_length": limit}
    (base / "tokenizer_config.json").write_text(json.dumps(limited))
    listed = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (path, kind) in enumerate([("", "Transformer"), ("1_Pooling", "Pooling")])
    ]
    (base / "modules.json").write_text(json.dumps(listed))
    settings = {"max_seq_length": 9, "do_lower_case": True}
    (base / "sentence_bert_config.json").write_text(json.dumps(settings))
    (base / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 16, "pooling_mode_cls_token": True}
    (base / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    rows = [{**row, "text": row["text"].title()} for row in rows_of(workshop.tiny, 40)]
    pool = EncoderPool(LanguageConfig(base=str(base), models=encoders.config.models))
    library = SentenceTransformer(str(base), device="cpu")
    columns: Any = ([row[name] for row in rows] for name in ("text", "other", "score"))
    expected = EmbeddingSimilarityEvaluator(*columns)(library)["spearman_cosine"]
    actual = measure(workshop.similar(pool, rows), pool)
    assert actual == {"spearman": pytest.approx(expected, abs=1e-9)}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("modules.json", "{torn", r"missing or invalid modules\.json next to the base"),
        ("modules.json", '{"path": 3}', r"missing or invalid modules\.json next to the base"),
        ("modules.json", '[{"path": "", "type": "sentence_transformers.models.BoW"}]', "lists BoW"),
        (
            "1_Pooling/config.json",
            '{"pooling_mode": "median"}',
            "1_Pooling has the pooling mode median",
        ),
        ("1_Pooling/config.json", '{"include_prompt": false}', "excludes the prompt"),
        ("2_Dense/config.json", '{"use_residual": true}', "2_Dense is not a plain dense layer"),
        (
            "sentence_bert_config.json",
            '{"processing_kwargs": {"text": {"max_length": 5}}}',
            r"sentence_bert_config\.json has processing_kwargs of text",
        ),
        ("2_Dense/config.json", "{}", r"2_Dense has no model\.safetensors"),
    ],
)
def test_unsupported_modules_are_refused(
    workshop: Workshop, encoders: EncoderPool, name: str, content: str, message: str
) -> None:
    base = Path(encoders.config.base)
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense")]
    listed = [{"path": path, "type": f"sentence_transformers.models.{k}"} for path, k in kinds]
    files = {"modules.json": json.dumps(listed), "1_Pooling/config.json": "{}"}
    for path, text in {**files, name: content}.items():
        (base / path).parent.mkdir(exist_ok=True)
        (base / path).write_text(text)
    pool = EncoderPool(LanguageConfig(base=str(base), models=encoders.config.models))
    with pytest.raises(FusionError, match=message):
        workshop.similar(pool, rows_of(workshop.tiny))


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (
            [{"text": "a", "label": "x"}],
            {"names": ["a", "b"]},
            "line 1: unknown label 'x', expected one of a, b",
        ),
        (
            [{"text": "a", "label": 1}],
            {"names": ["1", "2"]},
            "line 1: label 1 is the number of class '2', and the name of another class",
        ),
        (
            [{"text": "a", "label": True}],
            {"names": ["yes", "no"]},
            "line 1: label is true, which is neither the name nor the number of a class",
        ),
        ([{"text": "a", "label": -1}], {}, "line 1: unknown label -1, expected the number"),
        ([{"text": "a", "label": 0}], {}, "no task_pool.datasets.a.train, whose"),
        ([{"text": "a", "label": 0}], {"label": "klass"}, "missing field 'klass'"),
    ],
)
def test_check_finds_invalid_lines(
    workshop: Workshop, encoders: EncoderPool, rows: Rows, options: Any, message: str
) -> None:
    tasks = workshop.classify(encoders, rows=rows, **options)
    with pytest.raises(FusionError, match=message):
        tasks.check()


def test_head_and_task_need_the_same_number_of_classes(
    workshop: Workshop, classifiers: ClassificationPool, encoders: EncoderPool
) -> None:
    rows = [{"text": "a", "label": 3}, {"text": "b", "label": 0}]
    tasks = workshop.classify(classifiers, rows=rows, names=["a", "b", "c", "d"])
    with pytest.raises(RecipeError, match="has 4 classes, but its head has 3"):
        measure(tasks, classifiers)
    with pytest.raises(RecipeError, match="have no head of their own"):
        workshop.classify(encoders, rows=rows, head="model")
    tasks = workshop.classify(encoders, rows=rows[1:], head="expert")
    with pytest.raises(
        RecipeError, match=r"has no head for task 'a': 'classifier\.\w+' is missing"
    ):
        tasks.check()


def test_head_and_task_need_the_same_order_of_classes(
    workshop: Workshop, classifiers: ClassificationPool
) -> None:
    rows = [{"text": "a", "label": 0}]
    message = r"the task has label_2, LABEL_0, LABEL_1, its head has LABEL_0, LABEL_1, LABEL_2"
    tasks = workshop.classify(classifiers, rows=rows, names=["label_2", "LABEL_0", "LABEL_1"])
    with pytest.raises(RecipeError, match=message):
        tasks.check()
    workshop.classify(classifiers, rows=rows, names=["label_0", "LABEL_1", "LABEL_2"]).check()


def test_a_model_that_computes_nan_has_no_accuracy(
    workshop: Workshop, classifiers: ClassificationPool
) -> None:
    tasks = workshop.classify(classifiers, rows=rows_of(workshop.tiny))
    model = classifiers.build(classifiers.base)
    model.get_parameter("classifier.bias").data[0] = torch.nan
    metrics = tasks["a"].evaluate(model)
    assert isnan(metrics["accuracy"])
    assert all(map(isnan, metrics.outcomes))


def save_roberta(workshop: Workshop, *, family: type[Any] = RobertaConfig) -> dict[str, Any]:
    """Save a base without a pooler, and an expert; both have a head."""
    tokenizer = workshop.tiny.tokenizer("words")
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16}
    config = family(
        vocab_size=len(tokenizer),
        **sizes,
        intermediate_size=24,
        max_position_embeddings=24,
        pad_token_id=1,
        num_labels=3,
    )
    paths = {}
    for seed, name in enumerate(["base", "a"]):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(config)
        if name == "base":
            model = AutoModelForMaskedLM.from_config(config)
        paths[name] = workshop.tiny.save(workshop.directory / name, model, tokenizer)
    return {"base": paths.pop("base"), "models": paths}


def test_roberta_is_evaluated_on_long_texts_without_a_pooler(workshop: Workshop) -> None:
    pool = EncoderPool(LanguageConfig(**save_roberta(workshop)))
    rows = [{**row, "text": row["text"] * 9} for row in rows_of(workshop.tiny, 12)]
    tasks = workshop.classify(pool, rows=rows, head="expert")
    assert tasks["a"].bound_encoder.length == 22  # of 24 rows, texts use those from 2
    pool.check_builds()
    whole = AutoModelForSequenceClassification.from_pretrained(workshop.directory / "a").eval()
    batch = tasks.adaptive("a").batch(0, size=6, split=Split.TEST, seed=0)
    encoder = pool.build(without_head(pool, "a"))
    with torch.no_grad():
        expected = whole(**whole_inputs(whole, batch.tensors)).logits
        torch.testing.assert_close(tasks.adaptive("a").logits(encoder, batch), expected)
    assert 0 <= measure(tasks, pool)["accuracy"] <= 1


def test_a_head_that_reads_a_pooler_needs_one(workshop: Workshop) -> None:
    pool = EncoderPool(LanguageConfig(**save_roberta(workshop, family=BertConfig)))
    tasks = workshop.classify(pool, rows=rows_of(workshop.tiny), head="expert")
    with pytest.raises(RecipeError, match="reads the encoder's pooler"):
        tasks.check()


def test_halves_are_disjoint(workshop: Workshop, encoders: EncoderPool) -> None:
    rows = rows_of(workshop.tiny)
    halves = workshop.classify(encoders, rows=rows, train=rows).holdout()
    task = halves["a"]
    parts = [
        {line.location for line in task.lines(split)} for split in (Split.UNLABELED, Split.TEST)
    ]
    assert [len(part) for part in parts] == [12, 12]
    assert not parts[0] & parts[1]
    assert len(workshop.similar(encoders, rows).holdout()["a"].lines(Split.TEST)) == 12


def test_the_identity_covers_everything_that_a_metric_depends_on(
    workshop: Workshop, models_with_own_heads: Callable[..., EncoderPool], tiny: Tiny
) -> None:
    pool, rows = models_with_own_heads("bert"), rows_of(workshop.tiny)

    def identity(**options: Any) -> str:
        tasks = workshop.classify(pool, rows=rows, train=rows, **options)
        return json.dumps({**tasks.identity("a"), "files": None})

    first = identity(head="expert")
    others = [
        identity(),
        identity(head="expert", length=9),
        identity(head="names", names=["a", "b"]),
    ]
    other = tiny.live("bert", 5, pool="sequence-classification", rows=90, num_labels=4)
    tiny.save(workshop.directory / "a", other, None)
    pool = EncoderPool(pool.config)
    actual = {first, *others, identity(head="expert")}
    assert len(actual) == 5
