"""Time and memory of reading and writing quantised checkpoints, against torch in memory.

The floor of a format dequantises each stored tensor at once, from memory, with the same arithmetic
on the same dtypes, and rounds it to bf16. Ours opens the directory and reads it range by range, as
the engine does. Both run in one process on one thread, in turns; the best of each counts. Peak
memory is measured in a child of its own, above that of importing torch and the plugin.

Writing is an average of two experts with `output.quantise`. Its floor is the same run with plain
output, and a loop that quantises the written tensors whole, from memory. `--write` measures only
this.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import torch
from measuring import MB, child, headings, row
from safetensors.torch import load_file, save_file

from fusion_core import RunOptions, find_model, run_fusion

if TYPE_CHECKING:
    from collections.abc import Callable

    Tensors = dict[str, torch.Tensor]

NAME, GROUP = "model.layers.0.mlp.up_proj", 128
FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
ORDER = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])


def octets(*shape: int) -> torch.Tensor:
    """Return random bytes."""
    return torch.randint(0, 120, shape, dtype=torch.uint8)


def make_fp8(rows: int, width: int) -> tuple[dict[str, Any], Tensors]:
    """Return the settings and tensors of block-fp8."""
    scales = torch.rand(rows // GROUP, width // GROUP)
    codes = octets(rows, width).view(torch.float8_e4m3fn)
    return {"quant_method": "fp8"}, {f"{NAME}.weight": codes, f"{NAME}.weight_scale_inv": scales}


def floor_fp8(stored: Tensors) -> torch.Tensor:
    """Multiply blocks by their scales."""
    codes, scales = stored[f"{NAME}.weight"], stored[f"{NAME}.weight_scale_inv"]
    blocks = codes.float().view(len(scales), GROUP, -1, GROUP) * scales[:, None, :, None]
    return blocks.view(codes.shape).bfloat16()


def make_nvfp4(rows: int, width: int) -> tuple[dict[str, Any], Tensors]:
    """Return the settings and tensors of nvfp4 in compressed-tensors."""
    weights = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
    settings = {
        "quant_method": "compressed-tensors",
        "format": "nvfp4-pack-quantized",
        "config_groups": {"group_0": {"weights": weights}},
    }
    return settings, {
        f"{NAME}.weight_packed": octets(rows, width // 2),
        f"{NAME}.weight_scale": octets(rows, width // 16).view(torch.float8_e4m3fn),
        f"{NAME}.weight_global_scale": torch.tensor([3.0]),
    }


def floor_nvfp4(stored: Tensors) -> torch.Tensor:
    """Look numbers up and multiply groups by their scales."""
    packed = stored[f"{NAME}.weight_packed"]
    scales = stored[f"{NAME}.weight_scale"].bfloat16() / stored[f"{NAME}.weight_global_scale"]
    codes = torch.stack((packed & 15, packed >> 4), -1).flatten(1)
    values = FP4[codes.int()].view(*scales.shape, 16) * scales.unsqueeze(-1)
    return values.view(codes.shape).bfloat16()


def make_mxfp4(rows: int, width: int) -> tuple[dict[str, Any], Tensors]:
    """Return the settings and tensors of packed experts."""
    shape = (4, rows // 4, width // 32)
    return {"quant_method": "mxfp4"}, {
        f"{NAME}_blocks": octets(*shape, 16),
        f"{NAME}_scales": octets(*shape),
    }


def floor_mxfp4(stored: Tensors) -> torch.Tensor:
    """Look numbers up, apply exponents and transpose each expert."""
    blocks, scales = stored[f"{NAME}_blocks"], stored[f"{NAME}_scales"]
    codes = torch.stack((blocks & 15, blocks >> 4), -1).flatten(-2)
    values = torch.ldexp(FP4.bfloat16()[codes.int()], scales.int().unsqueeze(-1) - 127)
    return values.flatten(-2).transpose(1, 2).contiguous()


def make_nf4(rows: int, width: int) -> tuple[dict[str, Any], Tensors]:
    """Return the settings and tensors of nf4 without nested scales."""
    state = {"shape": [rows, width], "blocksize": 64, "dtype": "bfloat16", "quant_type": "nf4"}
    name = f"{NAME}.weight"
    return {"quant_method": "bitsandbytes"}, {
        name: octets(rows * width // 2, 1),
        f"{name}.absmax": torch.rand(rows * width // 64),
        f"{name}.quant_map": torch.linspace(-1, 1, 16),
        f"{name}.quant_state.bitsandbytes__nf4": torch.tensor([*json.dumps(state).encode()]).byte(),
    }


def floor_nf4(stored: Tensors) -> torch.Tensor:
    """Look numbers up and multiply blocks by their scales."""
    packed, scales = stored[f"{NAME}.weight"].flatten(), stored[f"{NAME}.weight.absmax"]
    codes = torch.stack((packed >> 4, packed & 15), -1).flatten()
    values = stored[f"{NAME}.weight.quant_map"][codes.int()].view(-1, 64) * scales.unsqueeze(1)
    return values.bfloat16()


def make_gptq(rows: int, width: int) -> tuple[dict[str, Any], Tensors]:
    """Return the settings and tensors of GPTQ with 4 bits."""
    groups = width // GROUP
    return {"quant_method": "gptq", "bits": 4}, {
        f"{NAME}.qweight": octets(width // 8, rows * 4).view(torch.int32),
        f"{NAME}.qzeros": octets(groups, rows // 2).view(torch.int32),
        f"{NAME}.scales": torch.rand(groups, rows).half(),
        f"{NAME}.g_idx": torch.arange(width, dtype=torch.int32) // GROUP,
    }


def floor_gptq(stored: Tensors) -> torch.Tensor:
    """Unpack codes and zero points, and transpose."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    words, scales = stored[f"{NAME}.qweight"], stored[f"{NAME}.scales"]
    zeros = stored[f"{NAME}.qzeros"] + 0x11111111
    codes = (words.unsqueeze(1) >> shifts[:, None] & 15).to(torch.int8).flatten(0, 1)
    zeros = (zeros.unsqueeze(2) >> shifts & 15).to(torch.int8).flatten(1)
    groups = stored[f"{NAME}.g_idx"].long()
    return (scales[groups] * (codes - zeros[groups])).T.bfloat16().contiguous()


def make_awq(rows: int, width: int) -> tuple[dict[str, Any], Tensors]:
    """Return the settings and tensors of AWQ."""
    groups = width // GROUP
    return {"quant_method": "awq", "bits": 4}, {
        f"{NAME}.qweight": octets(width, rows // 2).view(torch.int32),
        f"{NAME}.qzeros": octets(groups, rows // 2).view(torch.int32),
        f"{NAME}.scales": torch.rand(groups, rows).half(),
    }


def floor_awq(stored: Tensors) -> torch.Tensor:
    """Unpack codes and zero points in their order, and transpose."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)[ORDER]
    words, scales = stored[f"{NAME}.qweight"], stored[f"{NAME}.scales"]
    codes = (words.unsqueeze(2) >> shifts & 15).to(torch.int8).flatten(1)
    zeros = (stored[f"{NAME}.qzeros"].unsqueeze(2) >> shifts & 15).to(torch.int8).flatten(1)
    values = (codes.view(len(scales), GROUP, -1) - zeros.unsqueeze(1)) * scales.unsqueeze(1)
    return values.flatten(0, 1).T.bfloat16().contiguous()


def make_gguf(path: Path, rows: int, width: int) -> None:
    """Write one matrix of Q4_K."""
    blocks = np.random.default_rng(0).integers(0, 100, (rows, width // 256 * 144))
    writer = gguf.GGUFWriter(path, "llama")
    kind = gguf.GGMLQuantizationType.Q4_K
    writer.add_tensor("blk.0.ffn_up.weight", blocks.astype(np.uint8), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def floor_gguf(stored: Tensors) -> torch.Tensor:
    """Dequantise with gguf."""
    kind = gguf.GGMLQuantizationType.Q4_K
    return torch.from_numpy(gguf.quants.dequantize(stored["blocks"].numpy(), kind)).bfloat16()


FORMATS: dict[str, tuple[Callable[..., Any], Callable[[Tensors], torch.Tensor]]] = {
    "block-fp8": (make_fp8, floor_fp8),
    "nvfp4": (make_nvfp4, floor_nvfp4),
    "mxfp4": (make_mxfp4, floor_mxfp4),
    "nf4": (make_nf4, floor_nf4),
    "gptq": (make_gptq, floor_gptq),
    "awq": (make_awq, floor_awq),
    "gguf Q4_K": (make_gguf, floor_gguf),
}


def write(name: str, directory: Path, rows: int, width: int) -> Tensors:
    """Write a checkpoint of a format and return its stored tensors."""
    make = FORMATS[name][0]
    if make is make_gguf:
        make_gguf(directory / "model.gguf", rows, width)
        data = gguf.GGUFReader(directory / "model.gguf").tensors[0].data
        return {"blocks": torch.from_numpy(data.copy())}
    settings, tensors = make(rows, width)
    config = {"dtype": "bfloat16", "quantization_config": settings}
    (directory / "config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "model.safetensors")
    return load_file(directory / "model.safetensors")


def read(directory: Path) -> None:
    """Read every range of a model, as the engine does, and keep none."""
    source = find_model(str(directory), "model").open()
    for name in source.infos:
        for start, stop in source.ranges(name):
            source.read(name, start, stop)


def make_experts(folder: Path, rows: int, width: int) -> None:
    """Write two experts of eight matrices."""
    for model in ("a", "b"):
        (folder / model).mkdir()
        (folder / model / "config.json").write_text('{"dtype": "bfloat16"}')
        names = (f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(8))
        tensors = {name: torch.randn(rows // 8, width).bfloat16() for name in names}
        save_file(tensors, folder / model / "model.safetensors", {"format": "pt"})


def merge(folder: Path, **form: str) -> None:
    """Write the average of the experts on one worker."""
    run_fusion(
        algorithm="simple-average",
        model_pool={"models": [str(folder / "a"), str(folder / "b")]},
        output={"path": str(folder / "-".join(("out", *form))), **form},
        options=RunOptions(workers=1, overwrite=True),
    )


def quantise(tensors: Tensors) -> None:
    """Quantise whole tensors in blocks, and measure the error."""
    for tensor in tensors.values():
        values = tensor.float()
        blocks = values.view(len(tensor) // GROUP, GROUP, -1, GROUP)
        scales = blocks.abs().amax((1, 3), keepdim=True) / 448
        codes = (blocks / scales).to(torch.float8_e4m3fn)
        (codes.float() * scales - blocks).norm()


def measure_writing(rows: int, width: int, repeats: int) -> None:
    """Print the table of writing."""
    print(headings(["written", "plain", "torch", "ours", "ours / (plain + torch)", "peak"]))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_experts(folder, rows, width)
        merge(folder)
        tensors = load_file(folder / "out" / "model.safetensors")
        works = (
            lambda: merge(folder),
            lambda: quantise(tensors),
            lambda: merge(folder, quantise="fp8-block"),
        )
        rounds = [[measure(work) for work in works] for _ in range(repeats)]
        plain, torch_, ours = (min(times) for times in zip(*rounds, strict=True))
        peak = int(child(Path(__file__), "--peak-writing", name))
    times = (f"{plain:.2f} s", f"{torch_:.2f} s", f"{ours:.2f} s", f"{ours / (plain + torch_):.2f}")
    print(row(["block-fp8", *times, f"{peak / MB:.0f} MB"]), flush=True)


def peak_memory() -> int:
    """Return the peak memory of this process in bytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def measure(work: Callable[[], object]) -> float:
    """Return the seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    """Print a row per format; with --peak, print the peak memory of reading a directory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--width", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peak", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--peak-writing", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.peak:
        find_model(str(given.peak), "model").open().infos  # noqa: B018 - imports the reader
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # begin a new peak
        before = peak_memory()
        read(given.peak)
        print(peak_memory() - before)
        return
    if given.peak_writing:
        merge(given.peak_writing)  # imports all that a run needs
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = peak_memory()
        merge(given.peak_writing, quantise="fp8-block")
        print(peak_memory() - before)
        return
    if given.write:
        measure_writing(given.rows, given.width, given.repeats)
        return
    print(headings(["format", "floor", "ours", "ours / floor", "peak above torch"]))
    for name, (_, floor) in FORMATS.items():
        with tempfile.TemporaryDirectory() as folder:
            stored = write(name, Path(folder), given.rows, given.width)
            pairs = [
                (measure(lambda: floor(stored)), measure(lambda: read(Path(folder))))  # noqa: B023
                for _ in range(given.repeats)
            ]
            peak = int(child(Path(__file__), "--peak", folder))
        whole, ours = (min(times) for times in zip(*pairs, strict=True))
        cells = [name, f"{whole:.2f} s", f"{ours:.2f} s", f"{ours / whole:.2f}"]
        print(row([*cells, f"{peak / MB:.0f} MB"]), flush=True)
    measure_writing(given.rows, given.width, given.repeats)


if __name__ == "__main__":
    main()
