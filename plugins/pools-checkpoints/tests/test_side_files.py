"""The table of side files: differences are errors, warnings, or ignored."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import pytest
import torch
from differences import warnings
from safetensors.torch import save_file

from fusion_core.errors import AlignmentError, CheckpointError
from fusion_core.weights import SIDE_FILES
from pools_checkpoints import CheckpointsConfig, CheckpointsPool
from pools_checkpoints.comparison.table import NOT_COMPARED, TABLE

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

BODY = {"q.weight": torch.zeros(8, 8)}
CLASSIFIER = {"bert.q.weight": torch.zeros(4, 4), "classifier.weight": torch.zeros(2, 4)}
LABELS: dict[str, Any] = {
    "model_type": "bert",
    "architectures": ["BertForSequenceClassification"],
    "id2label": {"0": "negative", "1": "positive"},
    "label2id": {"negative": 0, "positive": 1},
}
SWAPPED = {**LABELS, "id2label": {"0": "positive", "1": "negative"}}
TEMPLATE = "{% for message in messages %}" + "x" * 200
PIXELS: dict[str, Any] = {
    "feature_extractor_type": "ViTFeatureExtractor",
    "image_mean": [0.5, 0.5, 0.5],
    "resample": 3,
    "size": 224,
}


def bpe(merges: list[Any], **stages: Any) -> dict[str, Any]:
    vocabulary = {"a": 0, "b": 1, "ab": 2, "ba": 3}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    model = {"type": "BPE", "vocab": vocabulary, "merges": merges}
    return {"normalizer": None, "pre_tokenizer": byte_level, "model": model, **stages}


MERGES = {"vocab.json": bpe([])["model"]["vocab"], "merges.txt": "#version: 0.2\na b\nb a\n"}


def write(path: Path, tensors: dict[str, Tensor], files: dict[str, Any]) -> str:
    path.mkdir()
    save_file(tensors, path / "model.safetensors")
    for file, content in files.items():
        (path / file).parent.mkdir(exist_ok=True)
        (path / file).write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def warnings_of(
    tmp_path: Path, *models: dict[str, Any], tensors: dict[str, Tensor] = BODY, **policy: Any
) -> tuple[str, ...]:
    """Return the warnings about models with some side files; the first model is the base."""
    paths = [write(tmp_path / f"m{n}", tensors, files) for n, files in enumerate(models)]
    return warnings(paths[0], *paths[1:], **policy)


def test_every_side_file_is_in_the_table_or_has_a_reason_not_to_be() -> None:
    patterns = [*NOT_COMPARED, *(pattern for row in TABLE for pattern in row.files)]
    names = [name.replace("*", "x") for name in SIDE_FILES]
    lost = [name for name in names if not any(fnmatchcase(name, pattern) for pattern in patterns)]
    assert lost == []


@pytest.mark.parametrize(
    ("ours", "theirs", "row"),
    [
        (
            LABELS,
            SWAPPED,
            "id2label  m0: {'0': 'positive', '1': 'negative'}, the base's is {'0': '",
        ),
        (LABELS, {**LABELS, "label2id": {"positive": 0, "negative": 1}}, "label2id  m0: "),
        (LABELS, {**LABELS, "id2label": {"0": "a", "1": "b"}}, "id2label  m0: "),
        (
            {**LABELS, "problem_type": "regression"},
            {**LABELS, "problem_type": "single_label_classification"},
            "problem_type  m0: 'single_label_classification', the base's is 'regression'",
        ),
        (
            LABELS,
            {**LABELS, "architectures": ["BertForTokenClassification"]},
            "architectures  m0: 'BertForTokenClassification', the base's is 'BertForSequence",
        ),
    ],
)
def test_classifiers_with_different_meanings_are_an_error_if_merged(
    tmp_path: Path, ours: dict[str, Any], theirs: dict[str, Any], row: str
) -> None:
    models = ({"config.json": ours}, {"config.json": theirs})
    with pytest.raises(AlignmentError) as caught:
        warnings_of(tmp_path, *models, tensors=CLASSIFIER)
    assert f"  config.json {row}" in caught.value.message
    paths = str(tmp_path / "m0"), str(tmp_path / "m1")
    assert row.split(maxsplit=1)[0] in "".join(warnings(*paths, config="warn"))
    assert warnings(*paths, config="ignore") == ()


@pytest.mark.parametrize(
    "theirs",
    [
        {**LABELS, "id2label": {"0": "NEGATIVE", "1": "Positive"}},
        {**LABELS, "id2label": {"0": "LABEL_0", "1": "LABEL_1"}},
        {key: value for key, value in LABELS.items() if key != "id2label"},
    ],
)
def test_equal_or_made_up_labels_are_not_a_difference(
    tmp_path: Path, theirs: dict[str, Any]
) -> None:
    assert warnings_of(tmp_path, {"config.json": LABELS}, {"config.json": theirs}) == ()


def test_heads_that_are_dropped_may_have_any_labels(tmp_path: Path) -> None:
    encoder = {"config.json": {"model_type": "bert", "architectures": ["BertModel"]}}
    body = {"bert.q.weight": CLASSIFIER["bert.q.weight"]}
    base = write(tmp_path / "base", body, encoder)
    experts = [
        write(tmp_path / name, CLASSIFIER, {"config.json": config})
        for name, config in {"one": LABELS, "other": SWAPPED}.items()
    ]
    assert warnings(base, *experts, extra="drop") == ()


@pytest.mark.parametrize(
    ("ours", "theirs", "warning"),
    [
        (
            {"preprocessor_config.json": PIXELS},
            {"processor_config.json": {"image_processor": {**PIXELS, "image_mean": [0.4] * 3}}},
            "processor_config.json image_mean: [0.4, 0.4, 0.4], the base's is [0.5, 0.5, 0.5] in p",
        ),
        (
            {"preprocessor_config.json": PIXELS},
            {"preprocessor_config.json": {**PIXELS, "size": {"height": 384, "width": 384}}},
            "preprocessor_config.json size: {'height': 384, 'width': 384}, the base's is 224",
        ),
        ({}, {"preprocessor_config.json": PIXELS}, "preprocessor: the base, and so the output, ha"),
        (
            {"chat_template.jinja": TEMPLATE},
            {"tokenizer_config.json": {"chat_template": f"{TEMPLATE}y"}},
            "tokenizer_config.json chat_template: ...xxxxxxxxxxxxxxxy', the base's is ...xxxxxxx",
        ),
        (
            {"additional_chat_templates/tool.jinja": "a"},
            {"tokenizer_config.json": {"chat_template": [{"name": "tool", "template": "b"}]}},
            "tokenizer_config.json chat_template tool: 'b', the base's is 'a' in additional_chat_",
        ),
        (
            {"generation_config.json": {"eos_token_id": [1, 2]}},
            {"generation_config.json": {"eos_token_id": 1}},
            "generation_config.json eos_token_id: [1], the base's is [1, 2]",
        ),
        (
            {"config.json": {"decoder_start_token_id": 0}},
            {"config.json": {"decoder_start_token_id": 2}},
            "config.json decoder_start_token_id: [2], the base's is [0]",
        ),
        (
            {"tokenizer.json": bpe(["a b", "b a"])},
            {"tokenizer.json": bpe(["b a", "a b"])},
            "tokenizer.json merges: '2 merges, SHA-256 ",
        ),
        (
            {"tokenizer.json": bpe(["a b"])},
            MERGES,
            "merges.txt merges: '2 merges, SHA-256 ",
        ),
        (
            {"tokenizer.json": bpe(["a b"])},
            {"tokenizer.json": bpe(["a b"], normalizer={"type": "Lowercase"})},
            "tokenizer.json normalizer: {'type': 'Lowercase'}, the base's is None",
        ),
        (
            {"tokenizer.json": bpe(["a b"])},
            {"tokenizer.json": bpe(["a b"], pre_tokenizer={"type": "Whitespace"})},
            "tokenizer.json pre_tokenizer: {'type': 'Whitespace'}, the base's is ",
        ),
        (
            {"tokenizer_config.json": {"do_lower_case": True}},
            {"tokenizer_config.json": {"do_lower_case": False}},
            "tokenizer_config.json do_lower_case: False, the base's is True",
        ),
        ({"tekken.json": "{}"}, {"tekken.json": "[]"}, "tekken.json SHA-256 of tekken.json: '4f"),
    ],
)
def test_a_difference_in_how_the_output_is_used_is_a_warning(
    tmp_path: Path, ours: dict[str, Any], theirs: dict[str, Any], warning: str
) -> None:
    (message,) = warnings_of(tmp_path, ours, theirs)
    assert message.startswith(f"m0: {warning}")


@pytest.mark.parametrize(
    "forms",
    [
        [
            {"preprocessor_config.json": PIXELS},
            {"processor_config.json": {"image_processor": {**PIXELS, "size": {"height": 224}}}},
            {
                "preprocessor_config.json": {
                    **{key: PIXELS[key] for key in ("image_mean", "resample")},
                    "image_processor_type": "ViTImageProcessorFast",
                    "size": {"height": 224, "width": 224},
                }
            },
        ],
        [
            {"chat_template.jinja": f"{TEMPLATE}\n"},
            {"tokenizer_config.json": {"chat_template": TEMPLATE}, "tokenizer.json": bpe([])},
            {"chat_template.json": {"chat_template": TEMPLATE}},
        ],
        [
            {"tokenizer.json": bpe(["a b", "b a"])},
            {"tokenizer.json": bpe([["a", "b"], ["b", "a"]])},
            MERGES,
        ],
        [
            {"generation_config.json": {"eos_token_id": [1, 2], "temperature": 0.1}},
            {"generation_config.json": {"eos_token_id": [2, 1], "temperature": 0.9}},
        ],
    ],
)
def test_the_same_settings_in_another_form_are_not_a_difference(
    tmp_path: Path, forms: list[dict[str, Any]]
) -> None:
    assert [
        warning for warning in warnings_of(tmp_path, *forms) if "tokenizer: the base" not in warning
    ] == []


# --- sizes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer.json", "tokenizer.model", "merges.txt", "chat_template.jinja"],
)
def test_a_file_that_is_too_large_to_read_is_refused_by_its_size(tmp_path: Path, name: str) -> None:
    paths = [write(tmp_path / name, BODY, {}) for name in ("base", "one")]
    for path in paths:
        with open(f"{path}/{name}", "wb") as stream:
            stream.truncate(6 * 2**30)
    with pytest.raises(CheckpointError, match=rf"{name} is too large: expected at most .* got 6,4"):
        warnings(*paths)


def test_a_large_file_that_is_not_parsed_is_copied(tmp_path: Path) -> None:
    base, one = (write(tmp_path / name, BODY, {}) for name in ("base", "one"))
    with open(f"{base}/tokenizer.model", "wb") as stream:
        stream.truncate(60_000_000)
    assert warnings(base, one) == ()
    pool = CheckpointsPool(CheckpointsConfig(base=base, models={"one": one}))
    assert "tokenizer.model" in pool.assets()
