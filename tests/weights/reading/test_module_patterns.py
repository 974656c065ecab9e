"""PEFT's patterns, held against `re`, which PEFT gives them to."""

from __future__ import annotations

import os
import random
import re
import warnings

import pytest

from fusion_core.weights.reading._module_patterns import ModulePatterns

PATTERNS = int(os.environ.get("FUSION_FUZZ_MUTANTS", "20000")) // 4
PARTS = [
    *("a", "b", "q", "0", "1", "_", "-", ".", "\\.", "\\d", "\\\\", "(", ")", "(?:", "|", "*", "+"),
    *("?", "^", "$", "[0-9]", "[ab]", "[a-q_]", "[", "]", "{2}", "q_proj", "h.0", "layers", "\\-"),
    *("\\w", "[^a]", " ", "[--a]", "[b-a]", "(?=a)", "(?P<n>a)", "\\1"),
]
NAMES = [
    *("q", "a", "b.a", "h.0.q_proj", "model.layers.10.q_proj", "x.h.0", "h10q", "aab", "0.1.9"),
    *("layers.a_b-q", "q.q.q", "ab.ba.0", "model.layers.1.mlp.q", "a-b.[", "\\", "é", "٣"),
]


def theirs(pattern: str, name: str) -> bool:
    return re.match(rf"(.*\.)?({pattern})$", name) is not None


def ours(pattern: str, name: str) -> bool:
    return ModulePatterns([pattern]).first(name) is not None


@pytest.mark.parametrize(
    "pattern",
    [
        *("q_proj", "h.0.q_proj", r"layers\.10\.q_proj", "^model.layers.10.q_proj$", "q|q_proj"),
        *("(q|k|v)_proj", r"layers\.\d+\.q_proj", "layers.[0-9]+.q_proj", "model.*q_proj", ""),
        *(r"model\.layers\.(1|10)\.(mlp\.)?q(_proj)?", "(?:h|x).*", "[a-h]", "^q$|^a$", "a*b?.*"),
    ],
)
def test_patterns_in_use_match_as_they_do_in_peft(pattern: str) -> None:
    assert [ours(pattern, name) for name in NAMES] == [theirs(pattern, name) for name in NAMES]


def test_random_patterns_match_as_in_re_or_are_refused() -> None:
    rng, taken = random.Random(os.environ.get("FUSION_FUZZ_SEED", "2026")), 0
    for _ in range(PATTERNS):
        pattern = "".join(rng.choice(PARTS) for _ in range(rng.randrange(9)))
        try:
            read = ModulePatterns([pattern])
        except ValueError:
            continue
        taken += 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for name in NAMES:
                assert (read.first(name) is not None) == theirs(pattern, name), (pattern, name)
    assert taken > PATTERNS // 10


def test_the_first_pattern_that_matches_counts() -> None:
    read = ModulePatterns(["b.q", "q", "a.q", "v|w"])
    assert [read.first(name) for name in ("a.q", "b.q", "x.w", "x")] == [1, 0, 3, None]


@pytest.mark.parametrize("length", [99, 100, 400])
def test_what_keeps_re_busy_for_ever_is_decided(length: int) -> None:
    assert ours("a?" * 99 + "a" * 99, "a" * length) is (99 <= length <= 198)


@pytest.mark.parametrize(
    "pattern",
    ["(a*)*b", "(a|a)*b", "a{9}", "x" * 1001, "(" * 30 + ")" * 30, "(a|b)" * 12, "a?" * 99],
)
def test_what_is_not_understood_or_would_take_long_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"involved|understood"):
        read = ModulePatterns([pattern])
        for number in range(10_000):
            read.first("a" * 400 + str(number))
