"""Configurations of mergekit's users in both tools, compared with the exact result, entry by entry.

Fifty configurations are random, from a fixed seed, for models of five architectures. The others are
files as people write them, `configurations/*.yml`: mergekit's own examples, written anew, and those
of a hub. mergekit runs every configuration twice: as it is, and in fp64, which is the exact result.

Every entry of ours has to be within one unit in the last place of its dtype, and two roundings of
fp32 for the terms of which it is the sum: where they cancel, the result's own unit is smaller than
these. Where mergekit computes in fp32, both tools have to be as near to each other, except for
methods of norms and angles, which mergekit does not sum in fp64. Of the entries that differ, ours
are the nearer ones more often (`test_our_entries_are_nearer`).
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from parity_configurations import generate
from parity_models import HUB, MODELS, write_hub, write_models
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from fusion_core import run_fusion
from fusion_core.commands import load_recipe

PYTHON = Path(os.environ["FUSION_MERGEKIT"]) / "bin" / "python"
FILES = {path.stem: path for path in Path(__file__).with_name("configurations").glob("*.yml")}
GENERATED = {case.name: case for case in generate(50)}
NAMES = [*GENERATED, *sorted(FILES)]
#: configurations that drop entries at random
RANDOM = {"dare-ties-int8", "della-union"}
#: methods of norms and angles
ANGLES = {"slerp", "nuslerp", "multislerp", "karcher", "model_stock"}
#: methods that depend on whole tensors. For us that is one matrix of one expert of a mixture, for
#: mergekit the packed matrices of all experts.
BY_TENSOR = ANGLES | {
    "ties",
    "breadcrumbs",
    "breadcrumbs_ties",
    "sce",
    "arcee_fusion",
    "ramplus_tl",
}
TEXTS = ("models are merged", "<|user|>whatever<|a|> the numbers</s>", "")
TALK = [{"role": "user", "content": "Who?"}]
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Merge:
    """One configuration, and its results in a directory."""

    root: Path
    name: str

    @cached_property
    def documents(self) -> list[dict[str, Any]]:
        return [*yaml.safe_load_all((self.root / f"{self.name}.yml").read_text())]

    @property
    def kind(self) -> str:
        return GENERATED[self.name].architecture if self.name in GENERATED else "hub"

    @property
    def methods(self) -> set[str]:
        return {document["merge_method"] for document in self.documents}

    def folder(self, run: str) -> Path:
        return (
            self.root / run.replace("exact", "theirs") / (self.name + ".exact" * (run == "exact"))
        )

    def merge(self) -> None:
        """Run it here, unless it ran before."""
        if not self.folder("ours").exists():
            run_fusion(load_recipe(f"{self.name}.yml"), output=f"ours/{self.name}")

    def load(self, run: str) -> Tensors:
        """Read a result; that of a mixture under the names of the live model, as mergekit's is."""
        if self.kind == "mixtral":
            model = AutoModelForCausalLM.from_pretrained(self.folder(run), dtype="auto")
            return dict(model.state_dict())
        files = self.folder(run).glob("*.safetensors")
        return {name: tensor for file in files for name, tensor in load_file(file).items()}

    @cached_property
    def inputs(self) -> list[Tensors]:
        """The models, where they have the result's tensors."""
        slices = [len(document.get("slices", ())) for document in self.documents]
        if self.kind in {"hub", "mixtral"} or slices != [0]:
            return []
        folders = (self.root / self.kind / name for name in MODELS)
        return [load_file(folder / "model.safetensors") for folder in folders]

    @cached_property
    def rows(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The row of each token in both results. mergekit fills other rows otherwise."""
        here, there = (
            AutoTokenizer.from_pretrained(self.folder(run)).get_vocab()
            for run in ("ours", "theirs")
        )
        assert here.keys() == there.keys()
        return torch.tensor([*here.values()]), torch.tensor([there[token] for token in here])

    def comparable(
        self,
    ) -> dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Return our entries, mergekit's, the exact ones, and what fp32 may round, by tensor."""
        ours, theirs, exact = (self.load(run) for run in ("ours", "theirs", "exact"))
        assert ours.keys() == theirs.keys()
        entries = {}
        for key, tensor in ours.items():
            assert (tensor.dtype, tensor.shape) == (theirs[key].dtype, theirs[key].shape), key
            if self.name in RANDOM or (".experts." in key and self.methods & BY_TENSOR):
                continue
            here, other, reference = tensor, theirs[key], exact[key].double()
            if key in {"model.embed_tokens.weight", "lm_head.weight"} and not self.inputs:
                mine, yours = self.rows
                here, other, reference = here[mine], other[yours], reference[yours]
            terms = sum(model[key].double().abs() for model in self.inputs)
            if not self.inputs:
                terms = len(MODELS) * reference.abs().max()
            entries[key] = (here, other, reference, 2 * torch.finfo(torch.float32).eps * terms)
        return entries


def count_units(
    difference: torch.Tensor, dtype: torch.dtype, exact: torch.Tensor, rounding: Any
) -> torch.Tensor:
    """Return differences beyond fp32's rounding, in units in the last place of a dtype."""
    numbers = torch.finfo(dtype)
    unit = (numbers.eps * exact.abs()).clamp_min(numbers.eps * numbers.smallest_normal)
    return (difference.abs() - rounding).clamp_min(0) / unit


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write all models and configurations, and run mergekit on them."""
    root = tmp_path_factory.mktemp("parity")
    write_models(root)
    write_hub(root / "hub")
    for name, case in GENERATED.items():
        write_documents(root, name, [locate(case.configuration, root / case.architecture)])
    for name, path in FILES.items():
        documents = yaml.safe_load_all(path.read_text())
        write_documents(root, name, [locate(document, root / "hub") for document in documents])
    script = Path(__file__).with_name("mergekit_recipes.py")
    subprocess.run([PYTHON, script, root], check=True)
    return root


def write_documents(root: Path, name: str, documents: list[dict[str, Any]]) -> None:
    """Write a configuration, and the same in fp64."""
    exact = [{**document, "dtype": "float64", "out_dtype": "float64"} for document in documents]
    for stem, content in {name: documents, f"{name}.exact": exact}.items():
        text = yaml.safe_dump_all(content, sort_keys=False, explicit_start=len(content) > 1)
        (root / f"{stem}.yml").write_text(text)


def locate(value: Any, folder: Path) -> Any:
    """Return a configuration with absolute paths, by which mergekit remembers models."""
    if isinstance(value, list):
        return [locate(item, folder) for item in value]
    if not isinstance(value, dict):
        return value
    known = {*HUB, "lora"}
    return {
        key: "+".join(str(folder / part) if part in known else part for part in item.split("+"))
        if key in {"model", "base_model", "source"} and isinstance(item, str)
        else locate(item, folder)
        for key, item in value.items()
    }


@pytest.fixture
def merge(
    directory: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Merge:
    """Return a merge that both tools have run."""
    monkeypatch.chdir(directory)
    merge = Merge(directory, request.param)
    merge.merge()
    return merge


@pytest.mark.parametrize("merge", NAMES, indirect=True)
def test_every_entry_is_the_exact_one(merge: Merge) -> None:
    for key, (ours, _, exact, rounding) in merge.comparable().items():
        assert count_units(ours.double() - exact, ours.dtype, exact, rounding).max() <= 1, key


IN_FP32 = [
    name
    for name in NAMES
    if name not in RANDOM
    and all(
        document.get("dtype") == "float32" and document["merge_method"] not in ANGLES
        for document in (
            [GENERATED[name].configuration]
            if name in GENERATED
            else yaml.safe_load_all(FILES[name].read_text())
        )
    )
]


@pytest.mark.parametrize("merge", IN_FP32, indirect=True)
def test_every_entry_is_mergekits_where_it_computes_in_fp32(merge: Merge) -> None:
    for key, (ours, theirs, exact, rounding) in merge.comparable().items():
        difference = ours.double() - theirs.double()
        assert count_units(difference, ours.dtype, exact, rounding).max() <= 1, key


@pytest.mark.parametrize("merge", NAMES, indirect=True)
def test_configuration_and_tokenizer_are_mergekits(merge: Merge) -> None:
    one, other = (
        json.loads((merge.folder(run) / "config.json").read_text()) for run in ("ours", "theirs")
    )
    assert one == other
    ours, theirs = (AutoTokenizer.from_pretrained(merge.folder(run)) for run in ("ours", "theirs"))
    assert [ours.decode(ours.encode(text)) for text in TEXTS] == [
        theirs.decode(theirs.encode(text)) for text in TEXTS
    ]
    assert ours.get_vocab().keys() == theirs.get_vocab().keys()
    assert ours.special_tokens_map == theirs.special_tokens_map
    last = merge.documents[-1]
    if last.get("tokenizer_source") != "union":  # of which both number the tokens differently
        assert ours.get_vocab() == theirs.get_vocab()
    if not {"base_model", "chat_template"} & last.keys():
        return  # mergekit takes the tokenizer of any model
    assert (ours.chat_template is None) == (theirs.chat_template is None)
    if ours.chat_template is not None:
        talks = (
            tokenizer.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True)
            for tokenizer in (ours, theirs)
        )
        assert next(talks) == next(talks)


def test_our_entries_are_nearer(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Count the entries of both tools that are the exact ones, rounded to their dtype."""
    monkeypatch.chdir(directory)
    groups: dict[str, list[int]] = {}
    for name in NAMES:
        merge = Merge(directory, name)
        merge.merge()
        last = merge.documents[-1]
        dtypes = last["dtype"], last.get("out_dtype", last["dtype"])
        group = "norms and angles" if merge.methods & ANGLES else "others"
        counts = groups.setdefault(f"{', '.join(dtypes)}, {group}", [0, 0, 0, 0])
        for ours, theirs, exact, rounding in merge.comparable().values():
            best = exact.to(ours.dtype)
            far = (count_units(theirs.double() - exact, ours.dtype, exact, rounding) > 1).sum()
            for number, count in enumerate(
                (best.numel(), (ours == best).sum(), (theirs == best).sum(), far)
            ):
                counts[number] += int(count)
    with capsys.disabled():
        for group, (total, *counts) in sorted(groups.items()):
            shares = ", ".join(f"{count / total:.2%}" for count in counts)
            print(  # noqa: T201 - the table of the page
                f"\n{group}: of {total} entries exact in ours, in mergekit's, far in it: {shares}"
            )
    assert all(ours >= 0.999 * theirs for _, ours, theirs, _ in groups.values())
