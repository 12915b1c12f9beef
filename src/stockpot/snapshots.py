"""Past weights of the policy, so that it can still write as it did: the newest few, in memory or as files.

Of a model with an adapter, only the adapter's.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from stockpot.lora import moving
from stockpot.types import StockpotError


class Snapshots:
    """Weights by version. What `save` puts beside a checkpoint is all that `restore` needs.

    With a `folder` they are files there, and a checkpoint gets hard links to them; without one they stay in memory.
    """

    def __init__(self, keep: int, folder: Path | None = None) -> None:
        self.keep, self.folder = keep, folder
        self._held: dict[int, dict[str, Tensor] | Path] = {}
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    @property
    def versions(self) -> list[int]:
        """The versions that can be had, oldest first."""
        return sorted(self._held)

    @torch.no_grad()
    def take(self, version: int, model: Any) -> None:
        """Remember the model as it is now; the oldest beyond the number kept is forgotten."""
        self.put(version, {name: parameter.detach().cpu().clone() for name, parameter in moving(model)})

    def put(self, version: int, weights: dict[str, Tensor]) -> None:
        """Remember these weights, which nobody may change afterwards."""
        self._held[version] = weights if self.folder is None else self._write(weights, self.folder, version)
        for old in self.versions[: -self.keep]:
            gone = self._held.pop(old)
            if isinstance(gone, Path):
                gone.unlink(missing_ok=True)

    def weights(self, version: int) -> dict[str, Tensor]:
        """The weights of that version, by the names they have in the model."""
        held = self._held[version]
        return _read(held) if isinstance(held, Path) else held

    @torch.no_grad()
    def load(self, version: int, model: Any) -> None:
        """Give `model` the weights of that version."""
        weights, own = self.weights(version), dict(moving(model))
        if {name: tensor.shape for name, tensor in weights.items()} != {n: p.shape for n, p in own.items()}:
            raise StockpotError(f"the snapshot of version {version} is of another model: resume the run it belongs to.")
        for name, parameter in own.items():
            parameter.copy_(weights[name])

    def save(self, folder: Path) -> None:
        """Put all of them into a checkpoint's folder."""
        for version, held in self._held.items():
            if isinstance(held, Path):
                try:
                    os.link(held, folder / held.name)
                except OSError:  # another file system, or one without links
                    shutil.copyfile(held, folder / held.name)
            else:
                save_file(held, folder / _name(version))

    def restore(self, folder: Path) -> None:
        """Take them back from a checkpoint's folder."""
        for path in sorted(folder.glob("snapshot-*.safetensors")):
            version = int(path.stem.partition("-")[2])
            weights = _read(path)
            self._held[version] = weights if self.folder is None else self._write(weights, self.folder, version)

    @staticmethod
    def _write(weights: dict[str, Tensor], folder: Path, version: int) -> Path:
        path = folder / _name(version)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(weights, path.with_suffix(".part"))
            path.with_suffix(".part").rename(path)
        except Exception as error:  # safetensors has errors of its own beside OSError
            raise StockpotError(f"cannot write {path} ({error}): free some space, then resume.") from error
        return path


def _name(version: int) -> str:
    return f"snapshot-{version}.safetensors"


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise StockpotError(f"{path} cannot be read ({error}): resume from an earlier checkpoint.") from error
