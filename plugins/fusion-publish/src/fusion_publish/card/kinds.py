"""The kinds of models, and the code that loads each of them.

The kind follows from the files of the directory. `{model}` in the code stands for the
directory or the repository.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fusion_core import AlgorithmSpec
from fusion_core.commands import load_plugins

if TYPE_CHECKING:
    from fusion_publish.card.outputs import MergeOutput

_GENERATE = """\
inputs = tokenizer("Hello", return_tensors="pt")
answer = model.generate(**inputs, max_new_tokens=20)
print(tokenizer.decode(answer[0], skip_special_tokens=True))
"""
_CHAT = """\
messages = [{"role": "user", "content": "Hello"}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
)
answer = model.generate(**inputs, max_new_tokens=20)
print(tokenizer.decode(answer[0], skip_special_tokens=True))
"""
_CALL = """\
inputs = tokenizer("Hello", return_tensors="pt")
outputs = model(**inputs)
"""
_SEE = """\
image = Image.new({image})  # put yours here
inputs = processor(images=image, return_tensors="pt")
outputs = model(**inputs)
"""
_TENSORS = """\
from pathlib import Path

from safetensors.torch import load_file

tensors = {}
for file in Path("{model}").glob("*.safetensors"):
    tensors |= load_file(file)
"""
_SENTENCES = """\
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{model}")
embeddings = model.encode(["Hello", "world"])
print(model.similarity(embeddings, embeddings))
"""
_ADAPTER = """\
from peft import PeftModel
from transformers import {loader}

base = {loader}.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, "{model}")
"""
_PER_TASK = """\
from fusion_core import build_for_task

model = build_for_task("{model}", "{task}")
"""
#: Endings of class names: the class that loads them, the pipeline tag, and how they are used.
_LOADERS = {
    "ForCausalLM": ("AutoModelForCausalLM", "text-generation", _GENERATE),
    "LMHeadModel": ("AutoModelForCausalLM", "text-generation", _GENERATE),
    "ForSequenceClassification": (
        "AutoModelForSequenceClassification",
        "text-classification",
        _CALL,
    ),
    "ForTokenClassification": ("AutoModelForTokenClassification", "token-classification", _CALL),
    "ForQuestionAnswering": ("AutoModelForQuestionAnswering", "question-answering", _CALL),
    "ForMaskedLM": ("AutoModelForMaskedLM", "fill-mask", _CALL),
    "ForImageClassification": ("AutoModelForImageClassification", "image-classification", ""),
}
#: The hub counts "text2text-generation" as text generation, and knows no pipeline of that name.
_SEQ2SEQ = ("AutoModelForSeq2SeqLM", "text-generation", _GENERATE)
_IMAGE_TEXT = ("AutoModelForImageTextToText", "image-text-to-text", "")
_CLIP_TOWERS = ("CLIPVisionModel", "CLIPVisionModelWithProjection")
#: The task types of PEFT: the class of the base.
_PEFT_TASKS = {
    "CAUSAL_LM": "ForCausalLM",
    "SEQ_CLS": "ForSequenceClassification",
    "TOKEN_CLS": "ForTokenClassification",
    "QUESTION_ANS": "ForQuestionAnswering",
}


@dataclass(frozen=True)
class Kind:
    """A kind of model: what loads it, what it does, and code that loads it."""

    #: the library's identifier on the hub; None if no library knows the model
    library: str | None
    #: the hub's name of the task; None if the files do not tell
    pipeline_tag: str | None
    code: str
    #: whether the model is an adapter of its base
    is_adapter: bool = False


def find_kind(output: MergeOutput) -> Kind:
    """Return the kind of a model, as its files show it."""
    if output.report is not None and output.report.needs_task:
        task = next(iter(output.report.tasks))
        return Kind(None, None, _PER_TASK.replace("{task}", task))
    if output.has("adapter_config.json"):
        return _adapter(output)
    if output.has("modules.json"):
        return Kind("sentence-transformers", "sentence-similarity", _SENTENCES)
    architectures = output.config.get("architectures") or []
    if not architectures:
        return Kind(None, None, _TENSORS)
    return _with_modules(_transformers(output, str(architectures[0])), output)


def _with_modules(kind: Kind, output: MergeOutput) -> Kind:
    """Return a kind whose code also adds the modules that the method saved for live models."""
    for component in load_plugins().components(AlgorithmSpec):
        file, target = component.spec.modules_file, component.spec.add_modules
        if file is not None and target is not None and output.has(file):
            module, _, function = target.partition(":")
            imports = "from fusion_core.weights import CheckpointSource\n"
            imports += f"from {module} import {function}"
            built = next(line for line in kind.code.splitlines() if line.startswith("model = "))
            added = f'{function}(model, CheckpointSource("{{model}}/{file}"))'
            code = kind.code.replace(built, f"{built}\n{added}")
            return replace(kind, code=f"{imports}\n{code}")
    return kind


def _transformers(output: MergeOutput, architecture: str) -> Kind:
    loader, tag, use = _loader_of(architecture, output)
    names, steps = [loader], [f'model = {loader}.from_pretrained("{{model}}")']
    imports = []
    is_text = output.has("tokenizer_config.json") or output.has("tokenizer.json")
    if is_text:
        names.append("AutoTokenizer")
        use = _CHAT if use is _GENERATE and _has_chat_template(output) else use
        steps += ['tokenizer = AutoTokenizer.from_pretrained("{model}")', "", use]
    if output.has("preprocessor_config.json") and not is_text:
        imports = ["from PIL import Image"]
        names.append("AutoImageProcessor")
        steps.append('processor = AutoImageProcessor.from_pretrained("{model}")')
        steps += ["", _SEE.replace("{image}", _image(output))]
    imports.append(f"from transformers import {', '.join(sorted(names))}")
    return Kind("transformers", tag, "\n".join([*imports, "", *steps]))


def _has_chat_template(output: MergeOutput) -> bool:
    return output.has("chat_template.jinja") or bool(
        output.read_json("tokenizer_config.json").get("chat_template")
    )


def _image(output: MergeOutput) -> str:
    """Return the mode and the size of an image that the model accepts, as code."""
    config = {**output.config, **output.config.get("vision_config", {})}
    size = config.get("image_size")
    edge = size if isinstance(size, int) else 224
    return f'"{"L" if config.get("num_channels") == 1 else "RGB"}", ({edge}, {edge})'


def _loader_of(architecture: str, output: MergeOutput) -> tuple[str, str | None, str]:
    """Return the class that loads an architecture, the pipeline tag, and how it is used."""
    if architecture in _CLIP_TOWERS:
        return architecture, "image-feature-extraction", ""
    if architecture == "CLIPModel":
        return "CLIPModel", "zero-shot-image-classification", ""
    for ending, loader in _LOADERS.items():
        if architecture.endswith(ending):
            return loader
    if architecture.endswith("ForConditionalGeneration"):
        return _IMAGE_TEXT if "vision_config" in output.config else _SEQ2SEQ
    is_image = output.has("preprocessor_config.json")
    return "AutoModel", "image-feature-extraction" if is_image else "feature-extraction", _CALL


def _adapter(output: MergeOutput) -> Kind:
    config = output.read_json("adapter_config.json")
    ending = _PEFT_TASKS.get(str(config.get("task_type")), "")
    loader, tag, _ = _LOADERS.get(ending, ("AutoModel", None, ""))
    base = str(config.get("base_model_name_or_path") or "the base")
    code = _ADAPTER.replace("{loader}", loader).replace("{base}", base)
    return Kind("peft", tag, code, is_adapter=True)
