"""Transplants of real directories: rows, side files, records."""

from __future__ import annotations

import hashlib
import json
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transplant_models import (
    OTHER_TEXTS,
    TEXTS,
    Models,
    blanks,
    byte_level,
    permute,
    save_model,
    save_tokenizer,
    unigram,
)

from fusion_core.commands import read_provenance
from fusion_tokenizer import auto_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore")

INPUT, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = {}
    for file in directory.glob("*.safetensors"):
        loaded |= load_file(file)
    return loaded


def tokenizer(directory: Path) -> Tokenizer:
    return Tokenizer.from_file(str(directory / "tokenizer.json"))


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**(read(path) if path.exists() else {}), **changes}))


def texts_of(directory: Path) -> dict[int, bytes]:
    """Return the text of each token of the fixture's model or donor, by brute force."""
    letters = {chr(256 + n): byte for n, byte in enumerate([*range(33), *range(127, 161), 173])}
    texts: dict[int, bytes] = {}
    for token, number in tokenizer(directory).get_vocab().items():
        if token.startswith("<0x"):
            texts[number] = bytes([int(token[3:-1], 16)])
        elif "▁" in token or token.startswith("<") or not token.isascii():
            is_bytes = directory.name == "model"
            text = bytes(letters.get(c, ord(c)) for c in token) if is_bytes else token.encode()
            texts[number] = text.replace("▁".encode(), b" ")
        else:
            texts[number] = token.encode()
    return texts


def same_text(model: Path, donor: Path) -> dict[int, int]:
    """Return the model's id of each donor id with the same text."""
    model_ids = {text: number for number, text in texts_of(model).items()}
    return {
        number: model_ids[text] for number, text in texts_of(donor).items() if text in model_ids
    }


# --- rows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "llama-tied", "gpt2", "bf16"])
def test_the_same_vocabulary_in_another_order_gives_the_same_logits(
    tmp_path: Path, kind: str
) -> None:
    models = Models(tmp_path)
    original = byte_level(330, TEXTS, "<|begin|>")
    other, old = permute(original, 1)
    options: dict[str, Any] = {"kind": "gpt2"} if kind == "gpt2" else {}
    options |= {"tie_word_embeddings": kind in {"llama-tied", "gpt2"}}
    options |= {"dtype": torch.bfloat16} if kind == "bf16" else {}
    save_model(models.model, 330, **options)
    save_tokenizer(original, models.model, bos_token="<|begin|>")
    save_model(models.donor, 330, seed=1)
    save_tokenizer(other, models.donor, bos_token="<|begin|>")
    models.transplant()
    runs = []
    for directory in (models.model, models.output):
        live = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype="auto")
        ids = torch.tensor([tokenizer(directory).encode(TEXTS[0]).ids])
        output = live(input_ids=ids, output_hidden_states=True)
        runs.append((output.hidden_states[-1], live.get_output_embeddings().weight, output.logits))
    (hidden, rows, _), (other_hidden, _, logits) = runs
    assert other_hidden.equal(hidden)
    # Multiplied in the new order: on some processors, the order of columns changes the rounding.
    assert logits.equal(torch.nn.functional.linear(hidden, rows[old]))


def test_rows_of_shared_tokens_survive_the_way_there_and_back(pair: Models) -> None:
    pair.transplant()
    shared = same_text(pair.model, pair.donor)
    assert len(shared) > 60
    before, after = tensors(pair.model), tensors(pair.output)
    rows, model_ids = torch.tensor([*shared]), torch.tensor([*shared.values()])
    assert {name for name in before if not before[name].equal(after[name])} == {INPUT, OUTPUT}
    for name in (INPUT, OUTPUT):
        assert after[name].shape == (420, 16)
        assert after[name][rows].equal(before[name][model_ids])
    there = pair.output.rename(pair.root / "there")
    pair.transplant("--method", "subword", model=there, donor=pair.model)
    back = tensors(pair.output)
    for name in before:
        if name in {INPUT, OUTPUT}:
            assert back[name][model_ids].equal(before[name][model_ids])
        else:
            assert back[name].equal(before[name])


def new_tokens(models: Models) -> list[int]:
    shared = same_text(models.model, models.donor)
    roles = {tokenizer(models.donor).token_to_id(token) for token in ("<s>", "</s>")}
    return [number for number in range(420) if number not in shared and number not in roles]


@pytest.mark.parametrize("center", [True, False])
def test_omp_applies_the_donors_coefficients_to_the_models_rows(
    pair: Models, *, center: bool
) -> None:
    pair.transplant("-k", 5, *([] if center else ["--no-center"]))
    donor, model, output = map(tensors, (pair.donor, pair.model, pair.output))
    special = {tokenizer(pair.donor).token_to_id(token) for token in ("<s>", "</s>", "<unk>")}
    byte_tokens = {
        number for token, number in tokenizer(pair.donor).get_vocab().items() if "<0x" in token
    }
    shared = same_text(pair.model, pair.donor)
    points = sorted(number for number in shared if number not in special | byte_tokens)
    rows, model_ids = torch.tensor(points), torch.tensor([shared[number] for number in points])
    new = new_tokens(pair)
    assert len(new) > 50
    for name in (INPUT, OUTPUT):
        atoms, theirs = donor[name][rows].double(), model[name][model_ids].double()
        origin = atoms.mean(0) if center else torch.zeros(24).double()
        target_origin = theirs.mean(0) if center else torch.zeros(16).double()
        for number in new:
            target = donor[name][number].double() - origin
            chosen: list[int] = []
            residual = target
            for _ in range(5):
                scores = ((atoms - origin) @ residual).abs()
                scores[chosen] = -1
                chosen.append(int(scores.argmax()))
                basis = (atoms - origin)[chosen].T
                solution = torch.linalg.lstsq(basis, target[:, None]).solution[:, 0]
                residual = target - basis @ solution
            expected = target_origin + solution @ (theirs[chosen] - target_origin)
            torch.testing.assert_close(
                output[name][number].double(), expected, rtol=1e-4, atol=1e-4
            )


def test_a_center_keeps_what_all_rows_have_in_common(pair: Models) -> None:
    """A vector that is added to all rows of a model is added to the new rows too."""
    pair.transplant("-k", 5)
    before, new, file = (
        tensors(pair.output)[INPUT],
        new_tokens(pair),
        pair.model / "model.safetensors",
    )
    shifted = tensors(pair.model)
    shifted[INPUT] += 3
    save_file(shifted, file)
    pair.transplant("-k", 5, "--overwrite")
    moved = tensors(pair.output)[INPUT][new] - before[new]
    torch.testing.assert_close(moved, torch.full_like(moved, 3), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("weights", ["mean", "ends"])
def test_subword_averages_the_rows_of_pieces(pair: Models, weights: str) -> None:
    pair.transplant("--method", "subword", "--subword-weights", weights)
    model, output, splits = tensors(pair.model), tensors(pair.output), tokenizer(pair.model)
    names = {number: token for token, number in tokenizer(pair.donor).get_vocab().items()}
    for number in new_tokens(pair):
        pieces = splits.encode(names[number].replace("▁", " ")).ids
        for name, end in ((INPUT, pieces[-1:]), (OUTPUT, pieces[:1])):
            expected = model[name][pieces if weights == "mean" else end].mean(0)
            torch.testing.assert_close(output[name][number], expected)


def use_in_model(pair: Models, core: Tokenizer) -> torch.Tensor:
    """Give the model another tokenizer that names no role, and return its input embeddings."""
    save_model(pair.model, core.get_vocab_size(), tie_word_embeddings=False)
    save_tokenizer(core, pair.model)
    return tensors(pair.model)[INPUT]


def test_unknown_text_has_no_pieces_whatever_the_settings_name(pair: Models) -> None:
    core = unigram(60, ["a quick dog"])
    before = use_in_model(pair, core)
    output = pair.transplant("--method", "subword", "--no-match-roles")
    assert "mean: the model's tokenizer has no pieces for it" in output
    unknown, after = before[core.token_to_id("<unk>")], tensors(pair.output)[INPUT]
    row = tokenizer(pair.donor).token_to_id("<unk>")
    assert (after == unknown).all(1).nonzero().flatten().tolist() == [row]  # by its text
    edit(pair.model / "tokenizer_config.json", bos_token="<unk>")
    error = pair.refuse("--overwrite", "--measure", "--method", "mean")
    assert "cannot represent the text" in error.message


def test_pieces_that_do_not_spell_a_token_leave_it_to_the_mean(pair: Models) -> None:
    letters = {" ": 0, "d": 1, "o": 2, "g": 3}  # without an unknown token: others are dropped
    before = use_in_model(pair, Tokenizer(BPE(vocab=letters, merges=[])))
    output = pair.transplant("--method", "subword")
    assert "mean: the model's pieces do not spell its text" in output
    after, ids = tensors(pair.output)[INPUT], tokenizer(pair.donor).get_vocab()
    torch.testing.assert_close(after[ids["▁do"]], before[:3].mean(0))
    dropped = [ids[token] for token in ids if "d" in token and "n" in token and "<" not in token]
    torch.testing.assert_close(after[dropped], before.mean(0).expand(len(dropped), -1))
    assert dropped


def test_mean_zero_and_interpolation_stay_in_their_range(pair: Models) -> None:
    new, before = new_tokens(pair), tensors(pair.model)[INPUT]
    for method, expected in (("mean", before.mean(0)), ("zero", torch.zeros(16))):
        pair.transplant("--method", method, "--overwrite")
        rows = tensors(pair.output)[INPUT][new]
        torch.testing.assert_close(rows, expected.expand_as(rows))
    pair.transplant("--method", "common-interpolation", "-k", 4, "--overwrite")
    rows = tensors(pair.output)[INPUT][new]
    assert (rows >= before.amin(0)).all()
    assert (rows <= before.amax(0)).all()
    assert len(rows.unique(dim=0)) > len(new) // 2


def test_a_bf16_model_is_computed_in_fp32_and_rounded_once(pair: Models) -> None:
    save_model(pair.model, 340, tie_word_embeddings=False, dtype=torch.bfloat16)
    pair.transplant("--method", "subword")
    exact, rounded = tensors(pair.model)[INPUT], tensors(pair.output)[INPUT]
    assert exact.dtype is rounded.dtype is torch.bfloat16
    names = {number: token for token, number in tokenizer(pair.donor).get_vocab().items()}
    new = new_tokens(pair)
    pieces = [tokenizer(pair.model).encode(names[number].replace("▁", " ")).ids for number in new]
    expected = torch.stack([exact[part].double().mean(0).bfloat16() for part in pieces])
    assert (rounded[new] == expected).float().mean() > 0.99  # a second rounding changes a fifth


def test_a_sharded_model_gives_the_same_tensors(pair: Models) -> None:
    pair.transplant("-k", 5)
    whole = tensors(pair.output)
    for file in pair.model.glob("*.safetensors"):
        file.unlink()
    save_model(pair.model, 340, tie_word_embeddings=False, max_shard_size="10KB")
    assert (pair.model / "model.safetensors.index.json").is_file()
    pair.transplant("-k", 5, "--overwrite", "--workers", 1)
    sharded = tensors(pair.output)
    assert whole.keys() == sharded.keys()
    assert all(whole[name].equal(sharded[name]) for name in whole)


# --- padding, roles and side files ---------------------------------------------------------------


def test_padding_has_the_mean_of_rows_with_tokens(pair: Models) -> None:
    save_model(pair.model, 352, tie_word_embeddings=False)  # twelve rows of the model are padding
    edit(pair.donor / "config.json", vocab_size=425)
    pair.transplant("--method", "mean", "--pad-to-multiple-of", 32)
    before, after = tensors(pair.model)[INPUT], tensors(pair.output)[INPUT]
    assert len(after) == read(pair.output / "config.json")["vocab_size"] == 448
    torch.testing.assert_close(after[420:], before[:340].mean(0).expand(28, -1))
    assert read(pair.output / "transplant_report.json")["padding"] == 28


def test_control_tokens_match_by_their_role_unless_switched_off(pair: Models) -> None:
    pair.transplant()
    report = read(pair.output / "transplant_report.json")
    assert report["by_role"] == {"<s>": "<|begin|>", "</s>": "<|end|>"}
    ids, model_ids = tokenizer(pair.donor).get_vocab(), tokenizer(pair.model).get_vocab()
    after, before = tensors(pair.output)[INPUT], tensors(pair.model)[INPUT]
    assert after[ids["<s>"]].equal(before[model_ids["<|begin|>"]])
    assert sum(report["matched"].values()) + report["new"] + report["padding"] == 420
    pair.transplant("--no-match-roles", "--overwrite")
    assert read(pair.output / "transplant_report.json")["by_role"] == {}
    assert not tensors(pair.output)[INPUT][ids["<s>"]].equal(before[model_ids["<|begin|>"]])


def test_a_token_of_the_model_serves_one_token_by_its_role(pair: Models) -> None:
    """Otherwise a pad token would be as likely as the end token whose row it has."""
    edit(pair.model / "tokenizer_config.json", pad_token="<|end|>")
    edit(pair.donor / "tokenizer_config.json", pad_token="<unk>")
    pair.transplant()
    report = read(pair.output / "transplant_report.json")
    assert report["by_role"] == {"<s>": "<|begin|>", "</s>": "<|end|>"}


def test_a_token_that_another_has_by_its_text_serves_no_role(pair: Models) -> None:
    core = tokenizer(pair.donor)
    core.add_special_tokens(["<|end|>"])
    core.save(str(pair.donor / "tokenizer.json"))
    edit(pair.donor / "tokenizer_config.json", eos_token="<|end|>")
    edit(pair.model / "tokenizer_config.json", bos_token="<|end|>")
    pair.transplant("--method", "mean")
    assert read(pair.output / "transplant_report.json")["by_role"] == {}


def test_configurations_name_the_donors_tokens(pair: Models) -> None:
    edit(
        pair.model / "config.json",
        unk_token_id=3,
        image_token_id=tokenizer(pair.model).token_to_id("Ġdog"),
    )
    edit(
        pair.model / "generation_config.json",
        eos_token_id=[1, 0],
        temperature=0.5,
        suppress_tokens=[5],
    )
    edit(pair.donor / "generation_config.json", eos_token_id=[2, 1], temperature=0.9)
    edit(pair.donor / "config.json", pad_token_id=[[1]])  # not an id
    output = pair.transplant()
    config = read(pair.output / "config.json")
    donor = tokenizer(pair.donor)
    assert config["bos_token_id"] == donor.token_to_id("<s>") == 1
    assert (config["unk_token_id"], config["vocab_size"]) == (donor.token_to_id("<unk>"), 420)
    assert config["image_token_id"] == donor.token_to_id("▁dog")
    generation = read(pair.output / "generation_config.json")
    assert (generation["eos_token_id"], generation["temperature"]) == ([2, 1], 0.5)
    assert "suppress_tokens" not in generation
    assert "left out suppress_tokens" in output
    live = transformers.AutoModelForCausalLM.from_pretrained(pair.output)
    wrapped = transformers.AutoTokenizer.from_pretrained(pair.output)
    answer = live.generate(
        **wrapped("the dog", return_tensors="pt"), max_new_tokens=3, eos_token_id=-1
    )
    assert wrapped.decode(answer[0]).startswith("the dog")


def test_an_id_of_a_token_that_the_donor_lacks_is_refused(pair: Models) -> None:
    edit(pair.model / "config.json", image_token_id=tokenizer(pair.model).token_to_id("<|begin|>"))
    error = pair.refuse()
    assert "image_token_id is 0, the token '<|begin|>', which the donor lacks" in error.message


def test_chat_templates_are_copied_on_request(pair: Models) -> None:
    (pair.model / "chat_template.jinja").write_text("<|begin|>{{ messages[0].content }}")
    edit(pair.donor / "tokenizer_config.json", chat_template="<s>{{ messages[0].content }}")

    def template() -> str | None:
        text: str | None = transformers.AutoTokenizer.from_pretrained(pair.output).chat_template
        return text

    flags = "--chat-template model or --chat-template donor"
    assert f"the output has no chat template: choose one by {flags}" in pair.transplant()
    assert template() is None
    assert "warning" not in pair.transplant("--chat-template", "donor", "--overwrite")
    assert template() == "<s>{{ messages[0].content }}"
    output = pair.transplant("--chat-template", "model", "--overwrite")
    assert "the chat template uses tokens that the donor lacks: <|begin|>" in output
    assert template() == "<|begin|>{{ messages[0].content }}"


def test_another_tokenizer_of_transformers_is_a_warning(
    pair: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(pair.model / "config.json", model_type="qwen2")
    output = pair.transplant("--method", "mean")
    ids = {
        loader: loader.from_pretrained(pair.output)(TEXTS[0])["input_ids"]
        for loader in (transformers.AutoTokenizer, transformers.PreTrainedTokenizerFast)
    }
    automatic, plain = ids.values()
    assert automatic != plain == tokenizer(pair.output).encode(TEXTS[0]).ids
    assert len(transformers.AutoTokenizer.from_pretrained(pair.output)) == 421
    (warning,) = read_provenance(pair.output).warnings
    for part in (
        "as Qwen2Tokenizer for the model type qwen2",
        "texts get other ids; tokens beyond the 420 rows",
        "<|endoftext|> (420)",
        "Load it with PreTrainedTokenizerFast.from_pretrained",
    ):
        assert part in warning
    assert f"warning: {warning}" in output
    monkeypatch.setattr(auto_tokenizer, "find_spec", lambda _: None)
    assert "warning" not in pair.transplant("--method", "mean", "--overwrite")


def test_a_donor_that_names_no_class_is_loaded_as_it_is(pair: Models) -> None:
    edit(pair.model / "config.json", model_type="qwen3")  # whose own class is Qwen2Tokenizer
    (pair.donor / "tokenizer_config.json").write_text(
        '{"eos_token": "</s>", "tokenizer_class": null}'
    )
    assert "warning" not in pair.transplant("--method", "mean")
    loaded = transformers.AutoTokenizer.from_pretrained(pair.output)
    assert loaded(TEXTS[0])["input_ids"] == tokenizer(pair.donor).encode(TEXTS[0]).ids
    assert (loaded.bos_token, loaded.eos_token) == ("<s>", "</s>")  # the donor's config names bos


# --- records -------------------------------------------------------------------------------------


def test_the_report_counts_every_row_and_the_provenance_has_it(pair: Models) -> None:
    output = pair.transplant("--method", "subword")
    report = read(pair.output / "transplant_report.json")
    shared = same_text(pair.model, pair.donor)
    assert report["new"] == len(new_tokens(pair))
    assert report["matched"]["same text"] + report["matched"]["same byte, other spelling"] == len(
        shared
    )
    assert report["matched"]["same byte, other spelling"] > 100
    provenance = read_provenance(pair.output)
    assert provenance.output["tokenizer"] == report
    assert provenance.subject.keys() == {path.name for path in pair.output.iterdir()} - {
        "provenance.json",
        "README.md",  # where fusion-publish is installed
    }
    assert provenance.command == "transplant-tokenizer"
    assert "new: subword" in output
    dry = pair.transplant("--method", "subword", "--dry-run", "--json")
    assert json.loads(dry)["matched"] == report["matched"]


def test_tokens_that_a_method_cannot_treat_get_the_mean_and_are_counted(pair: Models) -> None:
    donor = tokenizer(pair.donor)
    donor.add_tokens(["newest", "newer"])  # without rows in the donor
    donor.save(str(pair.donor / "tokenizer.json"))
    matrices = tensors(pair.donor)
    empty = donor.token_to_id("▁mountains") or new_tokens(pair)[-1]
    matrices[INPUT][empty] = 0
    save_file(matrices, pair.donor / "model.safetensors")
    output = pair.transplant("-k", 5)
    report = read(pair.output / "transplant_report.json")
    expected = {"the donor has no row for it": 2}
    assert report["left_to_mean"][OUTPUT] == expected
    assert report["left_to_mean"][INPUT] == {**expected, "the donor's row is zero": 1}
    assert "mean: the donor has no row for it" in output
    after, before = tensors(pair.output)[INPUT], tensors(pair.model)[INPUT]
    for number in (empty, 420, 421):
        torch.testing.assert_close(after[number], before[:340].mean(0))


def test_the_measurement_is_that_of_transformers(pair: Models) -> None:
    text = pair.root / "text.txt"
    text.write_text(TEXTS[0] * 3, encoding="utf-8")
    pair.transplant("--text", text)
    report = read(pair.output / "transplant_report.json")["perplexity"]
    for when, directory in (("before", pair.model), ("after", pair.output)):
        live = transformers.AutoModelForCausalLM.from_pretrained(directory)
        ids = tokenizer(directory).encode(TEXTS[0] * 3, add_special_tokens=False).ids
        bits = 0.0
        for start in range(0, len(ids), 63):  # windows of 64, with the start token, which is 0 or 1
            window = torch.tensor([[live.config.bos_token_id, *ids[start : start + 63]]])
            loss = live(input_ids=window, labels=window).loss
            bits += float(loss) * (window.shape[1] - 1) / math.log(2)
        assert report[when]["bits_per_byte"] == pytest.approx(bits / len(TEXTS[0] * 3), rel=1e-5)
        assert report[when]["tokens"] == len(ids)


def test_a_donor_may_be_a_tokenizer_alone(pair: Models, tmp_path: Path) -> None:
    pair.transplant("--method", "subword")
    expected = tensors(pair.output)
    alone = tmp_path / "alone"
    save_tokenizer(
        blanks(420, TEXTS + OTHER_TEXTS, "<s>", "</s>"), alone, bos_token="<s>", eos_token="</s>"
    )
    pair.transplant("--method", "subword", "--overwrite", donor=alone)
    donor = read_provenance(pair.output).inputs["donor"]
    content = (alone / "tokenizer.json").read_bytes()
    assert donor.source == "alone"
    assert donor.files["tokenizer.json"].sha256 == hashlib.sha256(content).hexdigest()
    assert all(expected[name].equal(tensor) for name, tensor in tensors(pair.output).items())
