"""Merge models of sentence-transformers in memory, save the result, and load it again.

python examples/sentence_transformers_merge.py BASE EXPERT EXPERT OUTPUT
"""

from __future__ import annotations

import sys
from typing import TypeVar

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.model import BaseModel

from fusion_core import run_fusion

ModelT = TypeVar("ModelT", bound=BaseModel)


def merge(base: ModelT, *experts: ModelT, algorithm: object = "tsv-m") -> ModelT:
    """Return a new model. Weights of all modules are merged, and all else is the base's."""
    models = {f"expert-{number}": expert for number, expert in enumerate(experts, start=1)}
    result = run_fusion(algorithm=algorithm, model_pool={"base": base, "models": models})
    assert isinstance(result.model, type(base))
    return result.model


if __name__ == "__main__":
    *paths, output = sys.argv[1:]
    merged = merge(*map(SentenceTransformer, paths))
    merged.save_pretrained(output, create_model_card=False)
    loaded = SentenceTransformer(output)
    print(f"{output}: {loaded.get_embedding_dimension()} dimensions")
