"""Evaluation as a careful user of plain transformers writes it, as a separate program.

    python evaluation_children.py MODEL TASKS SIZE DTYPE

prints the score of each task as JSON. Prompts are sorted by length and padded, answers are
generated with a cache, and scores that are not needed are dropped after each batch.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class Plain:
    """A model and its tokenizer, loaded as transformers' documentation does."""

    def __init__(self, directory: str, size: int, dtype: str) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(directory)
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        self.model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()
        self.size = size

    def ask(self, prompt: str, system: str | None) -> list[int]:
        """Return the tokens of a question in the model's chat template."""
        turns = [{"role": "system", "content": system}] if system else []
        turns.append({"role": "user", "content": prompt})
        text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def batches(self, rows: list[list[int]], side: str) -> Any:  # noqa: ANN401 - an iterator
        """Yield the numbers of rows of similar length, and the rows as padded tensors."""
        self.tokenizer.padding_side = side
        order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
        for start in range(0, len(order), self.size):
            numbers = order[start : start + self.size]
            chosen = {"input_ids": [rows[number] for number in numbers]}
            yield numbers, self.tokenizer.pad(chosen, return_tensors="pt")

    @torch.inference_mode()
    def generate(self, data: dict[str, Any], lines: list[dict[str, Any]]) -> float:
        """Return the share of lines that are answered exactly."""
        rows = [self.ask(line["prompt"], data.get("system")) for line in lines]
        right = 0
        for numbers, inputs in self.batches(rows, "left"):
            tokens = self.model.generate(
                **inputs, do_sample=False, max_new_tokens=data.get("max_tokens", 64)
            )
            answers = tokens[:, inputs["input_ids"].shape[1] :]
            for number, text in zip(
                numbers, self.tokenizer.batch_decode(answers, skip_special_tokens=True), strict=True
            ):
                right += text.strip() == str(lines[number]["answer"]).strip()
        return right / len(lines)

    def choice(self, data: dict[str, Any], lines: list[dict[str, Any]]) -> float:
        """Return the share of lines whose right choice is the likeliest per byte."""
        pairs = []
        for line in lines:
            context = self.ask(line["question"], data.get("system"))
            answers = self.tokenizer(line["choices"], add_special_tokens=False).input_ids
            pairs.extend((context, answer) for answer in answers)
        likelihoods = iter(self.score(pairs))
        right = 0
        for line in lines:
            scores = [next(likelihoods) / len(choice.encode()) for choice in line["choices"]]
            right += scores.index(max(scores)) == line["answer"]
        return right / len(lines)

    def perplexity(self, data: dict[str, Any], lines: list[dict[str, Any]]) -> float:
        """Return the bits per byte of the lines' texts."""
        texts = [data["text"].format_map(line) for line in lines]
        start = [self.tokenizer.bos_token_id or self.tokenizer.eos_token_id]
        rows = [self.tokenizer(text, add_special_tokens=False).input_ids for text in texts]
        nats = -sum(self.score([(start, row) for row in rows]))
        return nats / math.log(2) / sum(len(text.encode()) for text in texts)

    @torch.inference_mode()
    def score(self, pairs: list[tuple[list[int], list[int]]]) -> list[float]:
        """Return the log-likelihood of each pair's second part after its first."""
        result = [0.0] * len(pairs)
        rows = [context + answer for context, answer in pairs]
        for numbers, inputs in self.batches(rows, "right"):
            logits = self.model(**inputs).logits
            for number, scores in zip(numbers, logits, strict=True):
                context, answer = pairs[number]
                chosen = scores[len(context) - 1 : len(context) + len(answer) - 1]
                logs = chosen.float().log_softmax(-1).gather(1, torch.tensor(answer)[:, None])
                result[number] = float(logs.double().sum())
        return result


def main(directory: str, tasks: str, size: str, dtype: str) -> None:
    """Measure a model on tasks, and print the scores."""
    plain = Plain(directory, int(size), dtype)
    scores = {}
    for name, data in json.loads(tasks).items():
        lines = [json.loads(line) for line in Path(data["test"]).read_text().splitlines()]
        scores[name] = getattr(plain, data["kind"])(data, lines)
    print(json.dumps(scores))


if __name__ == "__main__":
    main(*sys.argv[1:])
