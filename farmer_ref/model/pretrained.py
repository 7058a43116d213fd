"""Models on disk and on the Hub: what `Farmer` has for it."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Self, Unpack

from farmer_ref.model.config import read_config
from farmer_ref.support.files import build, pretrained_folder, write_config, write_weights
from farmer_ref.support.hub import DownloadOptions, PushOptions, push_run


class Pretrained:
    """A model of a `config` that can be saved, loaded and shared: safetensors and JSON."""

    def save_pretrained(self, path: str | Path) -> None:
        """Write model.safetensors and config.json into the folder `path`, each replaced by one rename."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        write_config(folder, {"model": dataclasses.asdict(self.config)})
        write_weights(folder / "model.safetensors", self.state_dict())

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Unpack[DownloadOptions]) -> Self:
        """A trained model, in evaluation mode: one that ships with the package, a run folder, or owner/name of the Hub.

        Raises `InputError` where there is none, or where its files are damaged.
        """
        folder = pretrained_folder(name, **options)
        config = read_config(folder).model
        return build(lambda: cls(config), folder / "model.safetensors").eval()

    def push_to_hub(self, repository: str, **options: Unpack[PushOptions]) -> str:
        """Upload the model to owner/name of the Hugging Face Hub; the commit's address.

        The model alone: `hub.push_run` uploads a run folder with its student and its settings.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return push_run(folder, repository, **options)
