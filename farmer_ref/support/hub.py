"""Models on the Hugging Face Hub: a repository owner/name holds what a run folder holds, config.json and safetensors.

Not `PyTorchModelHubMixin`: where a repository has no safetensors it falls back to a pickle; it loads weights that do
not fit without a word (strict=False); it asks the network even for the name of a model that ships with the package; our
config.json, which also holds the run's settings, is not its format; and to import it takes longer than all the rest of
this package. `huggingface_hub` itself does the work: it is imported when a repository is asked for, and nothing but
config.json and *.safetensors is ever downloaded.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypedDict

from pydantic import BaseModel

from farmer_ref.support.errors import InputError
from farmer_ref.support.settings import parse_json

LIBRARY = "farmer_ref"
PAPER = "https://arxiv.org/abs/2510.23588"
REPOSITORY = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@(\S+))?")  # owner/name, or owner/name@revision
FILES, SUBFOLDERS = ["config.json", "*.safetensors"], ["*/*"]  # what is downloaded, and what is not: checkpoints/
_folders: dict[str, Path] = {}  # of the names that `pinned` has given in this process


class DownloadOptions(TypedDict, total=False):
    """How a repository of the Hub is read, by the names that its libraries share; a local model needs none of them."""

    revision: str | None
    """A branch, tag or commit; `owner/name@revision` says the same."""
    token: str | bool | None
    """For a private repository; not given: that of `hf auth login`, or of the environment variable HF_TOKEN."""
    cache_dir: str | Path | None
    """Where downloads are kept; not given: the cache that all libraries of the Hub share (HF_HUB_CACHE)."""
    force_download: bool
    """Download again what the cache holds."""
    local_files_only: bool
    """Only what the cache holds; HF_HUB_OFFLINE=1 says so for all."""


class PushOptions(TypedDict, total=False):
    """How a repository of the Hub is written."""

    token: str | bool | None
    """Not given: that of `hf auth login`, or of the environment variable HF_TOKEN."""
    private: bool | None
    """Whether a new repository is private; not given: what the owner's account says."""
    create_pr: bool
    """Propose the change (a pull request) in place of making it."""
    commit_message: str
    """One line."""
    license: str
    """Of the weights, for the model card; not given: mit, that of this package. The data may ask for another."""


class CardModel(BaseModel):
    """What the model card says of a model; a model itself asks for more (`farmer_ref.model.config`)."""

    image_size: int
    channels: int
    num_classes: int


class CardRun(BaseModel):
    """What the model card says of a run."""

    dataset: str = ""


class CardFacts(BaseModel):
    """What the model card takes from config.json."""

    model: CardModel
    training: CardRun = CardRun()


def is_repository(name: str) -> bool:
    """Whether the name reads as a repository of the Hub, and nothing here is called so."""
    return REPOSITORY.fullmatch(name) is not None and not Path(name).exists()


def download(
    name: str,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> Path:
    """The folder of the local cache with a repository's files, downloaded where they are not there   (DownloadOptions).

    Without a network, what the cache holds of the last time. Raises `InputError` where there is nothing.
    """
    if name in _folders and not (revision or cache_dir or force_download):
        return _folders[name]
    from huggingface_hub import errors, snapshot_download

    repository, given = REPOSITORY.fullmatch(name).groups()
    try:
        folder = snapshot_download(
            repository,
            revision=revision or given,
            token=token,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            allow_patterns=FILES,
            ignore_patterns=SUBFOLDERS,
        )
    except errors.LocalEntryNotFoundError:
        reason = "the Hugging Face Hub is not reached, and the cache of its downloads does not have it whole"
    except errors.RevisionNotFoundError:
        reason = f"the Hugging Face Hub has it, but no revision {revision or given!r} of it"
    except errors.GatedRepoError:
        reason = "its owner on the Hugging Face Hub wants to be asked first: see its page, then `hf auth login`"
    except errors.RepositoryNotFoundError:
        reason = "the Hugging Face Hub has none of that name, or a private one: `hf auth login`"
    except Exception as error:  # of whichever HTTP library is below
        reason = f"the Hugging Face Hub says: {_first_line(error)}"
    else:
        return Path(folder)
    raise InputError(
        f"model is {name!r}, which is no folder here, and {reason}; "
        "allowed: a run folder, a repository (owner/name), or a model that ships with the package"
    )


def pinned(name: str) -> str:
    """A repository's name with its present commit (owner/name@commit); any other name as it is.

    A command asks once, works with one commit throughout, and its figures say which.
    """
    if not is_repository(name):
        return name
    folder = download(name)
    named = f"{name.partition('@')[0]}@{folder.name}"
    _folders[named] = folder
    return named


def push_run(
    folder: str | Path,
    repository: str,
    token: str | bool | None = None,
    private: bool | None = None,
    create_pr: bool = False,
    commit_message: str = "Upload a FARMER model",
    license: str = "mit",
) -> str:
    """Upload a run folder's config.json, model and student in one commit; the commit's address   (PushOptions).

    The repository is made where there is none, and gets a model card where it has none. config.json goes as it is, with
    the settings of the run: the names of its data set and folders.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    folder = Path(folder)
    weights = sorted(folder.glob("*.safetensors"))
    path = folder / "config.json"
    if not path.is_file() or folder / "model.safetensors" not in weights:
        raise InputError(f"folder is {str(folder)!r}, without config.json and model.safetensors; allowed: a run folder")
    try:
        config = parse_json(CardFacts, path.read_bytes())
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    try:
        api = HfApi(token=token, library_name=LIBRARY)
        repository = api.create_repo(repository, private=private, exist_ok=True).repo_id
        operations = [CommitOperationAdd(file.name, file) for file in (path, *weights)]
        if not api.file_exists(repository, "README.md"):
            card = model_card(repository, config, license, folder / "student.safetensors" in weights)
            operations.append(CommitOperationAdd("README.md", card.encode()))
        commit = api.create_commit(repository, operations, commit_message=commit_message, create_pr=create_pr)
    except Exception as error:  # of whichever HTTP library is below
        raise InputError(
            f"repository is {repository!r}, to which nothing can be pushed ({_first_line(error)}); "
            "allowed: owner/name, after `hf auth login` with a token that may write"
        ) from error
    return commit.commit_url


def model_card(repository: str, config: CardFacts, license: str, with_student: bool) -> str:
    """README.md of a repository: what the model is, and how to load it; the head is what the Hub indexes."""
    from huggingface_hub import ModelCardData

    head = ModelCardData(library_name=LIBRARY, license=license, tags=["farmer", "normalizing-flow", "image-generation"])
    model, dataset = config.model, config.training.dataset
    side, channels, classes = model.image_size, model.channels, model.num_classes
    facts = [f"{side}×{side} images", f"{channels} colour channel{'s' if channels > 1 else ''}"]
    facts += [f"classes 0 to {classes - 1}"] if classes else []
    facts += [f"trained on `{dataset}`"] if dataset else []
    facts += ["with a one-step student of the flow's inverse"] if with_student else []
    load = [f'model = Farmer.from_pretrained("{repository}")']
    load += [f'student = OneStepStudent.from_pretrained("{repository}", model.flow)'] if with_student else []
    load += [f"images = model.sample(torch.tensor([{0 if classes else -1}]){', student=student' * with_student})"]
    newline = "\n"
    return f"""---
{head.to_yaml()}
---

# {repository.partition("/")[2]}

A [FARMER]({PAPER}) (Flow AutoRegressive Transformer over Pixels): an exact density of images, and samples of it.
{", ".join(facts)}.

```python
import torch
from {LIBRARY} import Farmer, OneStepStudent

{newline.join(load)}
```

Or `python -m {LIBRARY}.sample --run {repository} --out samples.png`. The weights are safetensors, and no code.
"""


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
