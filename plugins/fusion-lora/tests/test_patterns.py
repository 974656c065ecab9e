"""Regular expressions from adapters: they mean what they mean to PEFT, and none runs for ever."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from fusion_lora.reading.patterns import find_first_matches

NAMES = [
    *("q", "a", "b.a", "h.0.q_proj", "model.layers.10.q_proj", "x.h.0", "h10q", "aab", "0.1.9"),
    *("layers.a_b-q", "q.q.q", "ab.ba.0", "model.layers.1.mlp.q", "a-b.[", "\\", "é", "٣"),
]
PATTERNS = [
    *("q_proj", "h.0.q_proj", r"layers\.10\.q_proj", "^model.layers.10.q_proj$", "q|q_proj"),
    *("(q|k|v)_proj", r"layers\.\d+\.q_proj", "layers.[0-9]+.q_proj", "model.*q_proj", ""),
    *(r"model\.layers\.(1|10)\.(mlp\.)?q(_proj)?", "(?:h|x).*", "[a-h]", "^q$|^a$", "a*b?.*"),
    *(r"\w{2}", "(?=a).*", r"(a)\1", "[^a]"),
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_matches_as_in_peft(pattern: str) -> None:
    expected = [re.match(rf"(.*\.)?({pattern})$", name) is not None for name in NAMES]
    assert [index == 0 for index in find_first_matches([pattern], NAMES)] == expected


def test_the_first_pattern_that_matches_counts() -> None:
    indices = find_first_matches(["b.q", "q", "a.q", "v|w"], ["a.q", "b.q", "x.w", "x"])
    assert indices == [1, 0, 3, None]
    assert find_first_matches([], ["a"]) == [None]


@pytest.mark.parametrize("pattern", ["(", "a{2,1}", "[b-a]", "(" * 5000, "(?P<n>a)(?P<n>a)"])
def test_an_invalid_pattern_is_named(pattern: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"the pattern {pattern[:80]!r} is invalid")):
        find_first_matches(["q_proj", pattern], NAMES)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("pattern", ["(a*)*b", "(a|a)*b", "a?" * 99 + "a" * 99, "(a+)+?$b"])
def test_an_endless_pattern_is_refused_and_the_next_is_matched(pattern: str) -> None:
    with pytest.raises(ValueError, match="took more than 1 seconds"):
        find_first_matches([pattern], ["a" * 400])
    assert find_first_matches(["a"], ["a"]) == [0]


def test_patterns_that_take_much_memory_are_refused() -> None:
    with pytest.raises(ValueError, match="took more"):
        find_first_matches(["(a|b)" * 1_000_000], ["a"])


def test_patterns_for_every_module_of_a_large_model_are_matched() -> None:
    names = [f"model.layers.{layer}.self_attn.{part}_proj" for layer in range(80) for part in "qkv"]
    assert find_first_matches(names, names) == [*range(len(names))]


def test_the_child_imports_no_torch() -> None:
    code = "import sys, fusion_lora.reading.patterns as p; p.serve(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
