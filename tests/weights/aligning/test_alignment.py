from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from fusion_core.errors import AlignmentError
from fusion_core.recipe.config import AlignmentPolicy
from fusion_core.weights import StateDictSource, WeightSource, align
from fusion_core.weights.reading.name_matching import match_names

Infos = dict[str, tuple[tuple[int, ...], torch.dtype]]

F32, F16, BF16, I64 = torch.float32, torch.float16, torch.bfloat16, torch.int64
BOOL = torch.bool


def weights(infos: Infos) -> StateDictSource:
    tensors = {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in infos.items()}
    return StateDictSource(tensors)


def refuse(base: Infos | None, *experts: Infos, **policy: Any) -> list[str]:
    """Return the table's rows."""
    sources: dict[str, WeightSource] = {
        chr(97 + n): weights(infos) for n, infos in enumerate(experts)
    }
    with pytest.raises(AlignmentError) as caught:
        align(None if base is None else weights(base), sources, AlignmentPolicy(**policy))
    assert caught.value.exit_code == 4
    head, *rows = caught.value.message.splitlines()
    assert head.startswith("the models do not fit together: ")
    return [row.strip() for row in rows]


def align_all(base: Infos | None, *experts: Infos, **policy: Any) -> dict[str, WeightSource]:
    sources: dict[str, WeightSource] = {
        chr(97 + n): weights(infos) for n, infos in enumerate(experts)
    }
    alignment = align(None if base is None else weights(base), sources, AlignmentPolicy(**policy))
    return dict(alignment.experts)


BASE: Infos = {"w": ((2, 3), F32), "b": ((2,), F32), "n": ((), I64)}


def test_models_that_fit_are_passed_through() -> None:
    base, expert = weights(BASE), weights(dict(reversed(BASE.items())))
    assert align(base, {"a": expert}, AlignmentPolicy()).experts == {"a": expert}


def test_every_difference_is_in_one_table() -> None:
    rows = refuse(
        BASE,
        {"w": ((3, 2), F32), "b": ((2,), F16), "x": ((1,), F32)},
        {"w": ((2, 3), F32), "b": ((2,), I64), "n": ((), BOOL)},
        dtype="error",
    )
    assert rows == [
        "b  a: dtype torch.float16, the base's is torch.float32",
        "b  b: dtype torch.int64, the base's is torch.float32",
        "n  a: missing",
        "n  b: dtype torch.bool, the base's is torch.int64",
        "w  a: shape [3, 2], the base's is [2, 3]",
        "x  a: extra: not in the base",
    ]


def test_a_long_table_is_cut_and_counted() -> None:
    base: Infos = {f"t{n:03}": ((1,), F32) for n in range(50)}
    rows = refuse(base, {"t000": ((1,), F32)})
    assert len(rows) == 21
    assert rows[0] == "t001  a: missing"
    assert rows[-1] == "... and 29 more"


def test_without_a_base_models_are_compared_with_the_first_expert() -> None:
    rows = refuse(None, BASE, {"w": ((3, 2), F32), "b": ((2,), F32), "y": ((), F32)})
    assert rows == [
        "n  b: missing",
        "w  b: shape [3, 2], a's is [2, 3]",
        "y  b: extra: not in a",
    ]


def test_missing_tensors_may_come_from_the_base() -> None:
    base = StateDictSource({"w": torch.ones(2), "b": torch.full((2,), 5.0)})
    expert = StateDictSource({"w": torch.zeros(2)}, label="lean")
    aligned_expert = align(base, {"a": expert}, AlignmentPolicy(missing="base")).experts["a"]
    assert list(aligned_expert.infos) == ["w", "b"]
    assert torch.equal(aligned_expert.tensor("w"), torch.zeros(2))
    assert torch.equal(aligned_expert.tensor("b"), torch.full((2,), 5.0))
    assert aligned_expert.describe() == "lean"


def test_tensors_that_no_expert_has_are_named() -> None:
    norm = {f"{number}.gamma": torch.ones(2) for number in range(4)}
    renamed = {f"{number}.weight": torch.zeros(2) for number in range(4)}
    shared, head = {"w": torch.ones(2)}, {"head": torch.zeros(3)}
    policy = AlignmentPolicy(missing="base", extra="drop")
    experts = {"a": StateDictSource({**shared, **renamed}), "b": StateDictSource({**shared})}
    alignment = align(StateDictSource({**shared, **norm}), experts, policy)
    assert alignment.untouched == norm.keys()
    (warning,) = alignment.warnings
    assert warning == (
        "no expert has 4 tensors (0.gamma, 1.gamma, 2.gamma and 1 more), so the merge takes the "
        "base's; experts alone have 4 tensors (0.weight, 1.weight, 2.weight and 1 more), which the "
        "merge leaves out"
    )
    experts["b"] = StateDictSource({**shared, **norm, **head})
    assert not align(StateDictSource({**shared, **norm}), experts, policy).warnings


def test_without_a_base_missing_tensors_are_an_error() -> None:
    assert refuse(None, BASE, {"w": ((2, 3), F32), "b": ((2,), F32)}, missing="base") == [
        "n  b: missing"
    ]


def test_extra_tensors_may_be_dropped() -> None:
    expert = align_all(BASE, {**BASE, "head": ((9,), F32)}, extra="drop")["a"]
    assert expert.infos.keys() == BASE.keys()


def test_float_dtypes_may_differ_but_not_kinds() -> None:
    other: Infos = {"w": ((2, 3), BF16), "b": ((2,), torch.float64), "n": ((), I64)}
    assert align_all(BASE, other)["a"].infos["w"].dtype is BF16
    assert refuse(BASE, {**BASE, "n": ((), F32)}) == [
        "n  a: dtype torch.float32, the base's is torch.int64"
    ]
    assert refuse(BASE, {**BASE, "n": ((), torch.int32)}) == [
        "n  a: dtype torch.int32, the base's is torch.int64"
    ]


@pytest.mark.parametrize(
    ("expert", "hints"),
    [
        ({"w": ((2, 3), F32), "b": ((2,), F32)}, ["alignment.missing=base"]),
        ({**BASE, "x": ((), F32)}, ["alignment.extra=drop"]),
        ({**BASE, "w": ((3, 2), F32)}, []),
        ({**BASE, "n": ((), BOOL)}, []),
    ],
)
def test_a_hint_names_the_policies_that_would_help(expert: Infos, hints: list[str]) -> None:
    with pytest.raises(AlignmentError) as caught:
        align_all(BASE, expert)
    assert caught.value.hint is not None
    words = [word for word in caught.value.hint.split() if word.startswith("alignment.")]
    assert [word.rstrip(".,") for word in words] == hints


def test_a_hint_of_a_strict_dtype_policy() -> None:
    with pytest.raises(AlignmentError, match=r"alignment\.dtype=promote"):
        align_all(BASE, {**BASE, "w": ((2, 3), F16)}, dtype="error")


# --- one tensor under two names -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs", "names"),
    [
        (["a", "b"], ["b", "a"], {"a": "a", "b": "b"}),
        (["x.a", "x.b"], ["a", "b"], {"x.a": "a", "x.b": "b"}),
        (["a", "b"], ["x.y.a", "x.y.b"], {"a": "x.y.a", "b": "x.y.b"}),
        (["a", "b", "head"], ["x.a", "x.b", "head"], {"a": "x.a", "b": "x.b", "head": "head"}),
        (["a", "b", "c"], ["x.a", "x.b"], {"a": "x.a", "b": "x.b"}),
        # as they are, as long as a prefix does not make more of them meet
        (["a", "x.a"], ["a", "x.a"], {"a": "a", "x.a": "x.a"}),
        (["a", "b", "c"], ["a", "b", "x.c"], {"a": "a", "b": "b"}),
        (["a"], ["b"], {}),
        ([], ["a"], {}),
        # a text tower and a vision tower have layers of the same names: the better fit wins
        (
            ["text.layer.0", "vision.layer.0", "vision.patch"],
            ["layer.0", "patch"],
            {"vision.layer.0": "layer.0", "vision.patch": "patch"},
        ),
        # a prefix ends at a dot
        (["xa", "xb"], ["a", "b"], {}),
    ],
)
def test_the_prefix_under_which_most_names_meet(
    ours: list[str], theirs: list[str], names: dict[str, str]
) -> None:
    assert match_names(ours, theirs) == names


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (["a", "b"], ["model.a", "model.b", "ema.a", "ema.b"]),
        (["model.a", "model.b", "ema.a", "ema.b"], ["a", "b"]),
    ],
)
def test_two_equally_good_prefixes_are_refused(ours: list[str], theirs: list[str]) -> None:
    with pytest.raises(AlignmentError, match=r"two prefixes, such as '(model|ema)\.a' and "):
        match_names(ours, theirs)


def test_a_model_without_any_tensor_of_the_base_is_refused_under_every_policy() -> None:
    experts = {"a": weights(BASE), "b": weights({"other": ((2, 3), F32)})}
    policy = AlignmentPolicy(extra="drop", missing="base")
    with pytest.raises(
        AlignmentError, match=r"b .* has no tensor of the base, but 1 tensor \(other\)"
    ):
        align(weights(BASE), experts, policy)


def test_twenty_thousand_names_are_matched_quickly_enough_to_be_planned() -> None:
    ours = [f"layers.{n}.weight" for n in range(20_000)]
    names = match_names(ours, [f"model.{name}" for name in ours])
    assert names == {name: f"model.{name}" for name in ours}


def test_differences_are_shown_in_the_bases_spelling() -> None:
    assert refuse(
        {"x.a": ((2,), F32), "x.b": ((2,), F32), "x.c": ((2,), F32)},
        {"a": ((3,), F32), "b": ((2,), F32), "extra": ((2,), F32)},
    ) == [
        "extra  a: extra: not in the base",
        "x.a  a: shape [3], the base's is [2]",
        "x.c  a: missing",
    ]


# --- copies -------------------------------------------------------------------------------------


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_a_missing_copy_is_not_a_difference() -> None:
    for embeddings, tuned in (
        (random(5, 3, seed=1), random(5, 3, seed=2)),
        (random(9), random(9, seed=3)),
    ):
        base = StateDictSource({"in": embeddings, "head": embeddings.clone()})
        expert = StateDictSource({"in": tuned})
        aligned_expert = align(base, {"a": expert}, AlignmentPolicy()).experts["a"]
        assert torch.equal(aligned_expert.tensor("head"), tuned)
        aligned_expert = align(expert, {"a": base}, AlignmentPolicy()).experts["a"]
        assert aligned_expert.infos.keys() == {"in"}


@pytest.mark.parametrize(
    "head",
    [
        random(5, 3) + torch.eye(5, 3) * 1e-6,  # almost the same
        random(5, 3).reshape(3, 5),
        random(5, 3).double(),
    ],
)
def test_a_missing_tensor_that_is_not_a_copy_is_a_difference(head: torch.Tensor) -> None:
    base = StateDictSource({"in": random(5, 3), "head": head})
    expert = StateDictSource({"in": random(5, 3, seed=1)})
    with pytest.raises(AlignmentError, match="head  a: missing"):
        align(base, {"a": expert}, AlignmentPolicy())
    with pytest.raises(AlignmentError, match="head  a: extra"):
        align(expert, {"a": base}, AlignmentPolicy())


@pytest.mark.parametrize("value", [0.0, 1.0, float("nan")])
def test_constant_tensors_do_not_count_as_copies(value: float) -> None:
    base = StateDictSource({"a.bias": torch.full((4,), value), "b.bias": torch.full((4,), value)})
    expert = StateDictSource({"a.bias": torch.full((4,), value)})
    with pytest.raises(AlignmentError, match=r"b\.bias  a: missing"):
        align(base, {"a": expert}, AlignmentPolicy())


def test_copies_are_compared_to_their_end() -> None:
    embeddings = random(2**19)
    changed = embeddings.clone()
    changed[-1] += 1
    base = StateDictSource({"in": embeddings, "head": changed})
    with pytest.raises(AlignmentError, match="head  a: missing"):
        align(base, {"a": StateDictSource({"in": embeddings})}, AlignmentPolicy())


# --- vocabularies -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "theirs", "pads"),
    [
        ("model.embed_tokens.weight", (7, 3), True),
        ("lm_head.weight", (7, 3), True),
        ("lm_head.bias", (7, 3), True),
        ("transformer.wte.weight", (7, 3), True),
        ("shared.weight", (7, 3), True),
        ("bert.embeddings.word_embeddings.weight", (7, 3), True),
        ("cls.predictions.bias", (7, 3), True),
        ("backbone.embeddings.weight", (7, 3), True),
        ("vocab_projector.bias", (7, 3), True),
        ("generator_lm_head.bias", (7, 3), True),
        ("lm_head.decoder.bias", (7, 3), True),
        ("text_model.embeddings.token_embedding.weight", (7, 3), True),
        ("model.embed_tokens.weight", (5, 4), False),
        ("model.embed_tokens.weight", (7, 4), False),
        ("transformer.wpe.weight", (7, 3), False),
        ("bert.embeddings.position_embeddings.weight", (7, 3), False),
        ("classifier.weight", (7, 3), False),
        ("score.weight", (7, 3), False),
    ],
)
def test_only_embeddings_of_tokens_are_padded(
    name: str,
    theirs: tuple[int, ...],
    pads: bool,  # noqa: FBT001
) -> None:
    base, expert = {name: ((5, 3), F32)}, {name: (theirs, F32)}
    assert refuse(base, expert) == [f"{name}  a: shape {list(theirs)}, the base's is [5, 3]"]
    if pads:
        assert align_all(base, expert, vocab="pad")["a"].infos[name].shape == theirs
    else:
        refuse(base, expert, vocab="pad")


def test_a_bias_of_logits_is_padded_along_its_tokens() -> None:
    name = "final_logits_bias"
    base, expert = random(1, 4), random(1, 6, seed=1)
    sources = (StateDictSource({name: base}), {"a": StateDictSource({name: expert})})
    aligned = align(*sources, AlignmentPolicy(vocab="pad"))
    assert torch.equal(aligned.experts["a"].tensor(name), expert)
    assert aligned.base is not None
    assert torch.equal(aligned.base.tensor(name), torch.cat([base, expert[:, 4:]], dim=1))


def test_without_a_base_missing_rows_are_the_mean_of_other_experts() -> None:
    sizes = {"a": 2, "b": 5, "c": 4}
    tensors = {name: random(size, 3, seed=n) for n, (name, size) in enumerate(sizes.items())}
    experts: dict[str, WeightSource] = {
        name: StateDictSource({"wte.weight": tensor}) for name, tensor in tensors.items()
    }
    padded = align(None, experts, AlignmentPolicy(vocab="pad")).experts
    a, b, c = (padded[name].tensor("wte.weight") for name in "abc")
    assert a.shape == b.shape == c.shape == (5, 3)
    assert torch.equal(b, tensors["b"])
    assert torch.equal(a[:2], tensors["a"])
    torch.testing.assert_close(a[2:4], (tensors["b"][2:4] + tensors["c"][2:4]) / 2)
    assert torch.equal(a[4:], tensors["b"][4:])
    assert torch.equal(c[4:], tensors["b"][4:])


def test_a_head_that_only_one_model_ties_is_explained() -> None:
    untied = {"embed_tokens.weight": ((5, 3), F32), "lm_head.weight": ((5, 3), F32)}
    tied = {"embed_tokens.weight": ((5, 3), F32)}
    advice = "if tied to embed_tokens.weight there, save that model with a copy of it"
    assert refuse(untied, tied) == [f"lm_head.weight  a: missing; {advice}"]
    assert refuse(tied, untied) == [f"lm_head.weight  a: extra: not in the base; {advice}"]


def test_padded_rows_without_a_base_do_not_depend_on_the_order() -> None:
    tensors = {"a": random(3, 2), "b": random(5, 2, seed=1), "c": random(2, 2, seed=2)}
    for names in itertools.permutations(tensors):
        experts = {name: StateDictSource({"wte.weight": tensors[name]}) for name in names}
        padded = align(None, experts, AlignmentPolicy(vocab="pad")).experts
        a, b, c = (padded[name].tensor("wte.weight") for name in "abc")
        torch.testing.assert_close(c[2], (a[2] + b[2]) / 2)
        assert torch.equal(torch.cat([a[3:], c[3:]]), torch.cat([b[3:], b[3:]]))


def test_padded_rows_are_those_of_a_wider_base() -> None:
    base = StateDictSource({"wte.weight": 1e5 + random(6, 3)})
    expert = StateDictSource({"wte.weight": random(4, 3, seed=1).half()})
    padded = align(base, {"a": expert}, AlignmentPolicy(vocab="pad")).experts["a"]
    assert torch.equal(padded.tensor("wte.weight")[4:], base.tensor("wte.weight")[4:])


def test_padded_tensors_are_the_same_read_whole_and_in_any_parts() -> None:
    base = StateDictSource({"wte.weight": random(3, 4)})
    expert = StateDictSource({"wte.weight": random(6, 4, seed=1)})
    alignment = align(base, {"a": expert}, AlignmentPolicy(vocab="pad"))
    for source in (alignment.base, alignment.experts["a"]):
        assert source is not None
        whole = source.tensor("wte.weight").reshape(-1)
        for start in range(25):
            for stop in range(start, 25):
                assert torch.equal(source.read("wte.weight", start, stop), whole[start:stop])
