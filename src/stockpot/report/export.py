"""`stockpot export`: a checkpoint as a model folder that any tool reads."""

from __future__ import annotations

from pathlib import Path

import torch

from stockpot import checkpoints, console, lora
from stockpot.models import load_model, load_tokenizer
from stockpot.options import Export
from stockpot.record import Run
from stockpot.types import StockpotError


def export(options: Export) -> None:
    """Write the weights and the tokenizer; an adapter is added to its base first."""
    folder, out = options.run, options.out
    listed, alone = (folder / checkpoints.MANIFEST).is_file(), bool(lora.base_of(folder))
    if not listed and not alone:
        folder, listed = checkpoints.find(Run.open(folder).checkpoints, options.step, console.tell).folder, True
    elif options.step is not None:
        raise StockpotError(f"{folder} is one {'checkpoint' if listed else 'adapter'}: --step is for a run.")
    if listed and (wrong := checkpoints.problem(folder)):
        raise StockpotError(f"{folder} is not whole ({wrong}): take another step.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StockpotError(f"{out} already holds something: name another folder with --out.")
    write(folder, out, getattr(torch, options.dtype))
    console.tell(f"{folder} is in {out}, in {options.dtype}")


def write(checkpoint: Path, out: Path, dtype: torch.dtype = torch.float32) -> None:
    """The function behind it."""
    model = load_model(str(checkpoint), torch.device("cpu"))
    if lora.adapted(model):
        lora.merge(model)
    aside = out.with_name(f".{out.name}.part")
    try:
        aside.mkdir(parents=True, exist_ok=True)
        model.to(dtype).save_pretrained(aside)
        load_tokenizer(str(checkpoint)).save_pretrained(aside)
        if out.exists():
            out.rmdir()
        aside.rename(out)
    except Exception as error:  # safetensors has errors of its own beside OSError
        raise StockpotError(f"cannot write the model into {out} ({error}): free some space there.") from error
