"""Models on the Hugging Face Hub: a repository owner/name holds a run folder's config.json and safetensors.

`PyTorchModelHubMixin` does not do: it falls back to a pickle where a repository has no safetensors; it silently accepts
weights that do not fit (strict=False); it queries the network even for a model that ships with the package; its format
is not that of our config.json, which also holds the run's settings; and importing it takes longer than the rest of this
package. `huggingface_hub` itself does the work: it is imported when a repository is requested, and only config.json and
*.safetensors are ever downloaded.
"""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any, TypedDict

from pydantic import BaseModel

from farmer_ref.support.errors import InputError, shown
from farmer_ref.support.settings import parse_json

LIBRARY = "farmer_ref"
PAPER = "https://arxiv.org/abs/2510.23588"
REPOSITORY = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@(\S+))?")  # owner/name, or owner/name@revision
COMMIT, PATIENCE = re.compile(r"[0-9a-f]{40}"), 30  # seconds for an answer about a repository
FILES, SUBFOLDERS = ["config.json", "*.safetensors"], ["*/*"]  # downloaded, and skipped (checkpoints/)
_folders: dict[str, Path] = {}  # by the names that `pinned` has returned in this process


class DownloadOptions(TypedDict, total=False):
    """Options for reading a repository, named as in the Hub's own libraries; a local model needs none."""

    revision: str | None
    """A branch, tag or commit; `owner/name@revision` means the same."""
    token: str | bool | None
    """For a private repository; default: that of `hf auth login`, or the environment variable HF_TOKEN."""
    cache_dir: str | Path | None
    """Where downloads are cached; default: the cache shared by all of the Hub's libraries (HF_HUB_CACHE)."""
    force_download: bool
    """Download again what is cached."""
    local_files_only: bool
    """Use the cache only; HF_HUB_OFFLINE=1 has the same effect on all libraries."""


class PushOptions(TypedDict, total=False):
    """Options for writing a repository."""

    token: str | bool | None
    """Default: that of `hf auth login`, or the environment variable HF_TOKEN."""
    private: bool | None
    """Whether a new repository is private; default: as set in the owner's account."""
    create_pr: bool
    """Open a pull request instead of committing directly."""
    commit_message: str
    """One line."""
    license: str
    """The licence of the weights, for the model card; default: mit, as of this package. The data may demand another."""


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
    """Whether the name has the form of a Hub repository's and no local path has it."""
    return REPOSITORY.fullmatch(name) is not None and not Path(name).exists()


def download(
    name: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> Path:
    """The cached folder of a repository, its files downloaded if they are missing   (DownloadOptions).

    Without a network, the version cached last. Raises `InputError` if there is none.
    """
    if name in _folders and not (revision or cache_dir or force_download):
        return _folders[name]
    from huggingface_hub import errors, snapshot_download

    repository, given = REPOSITORY.fullmatch(name).groups()
    wanted = revision or given
    try:
        commit = None if local_files_only else _commit(repository, wanted, token)
        folder = snapshot_download(
            repository,
            revision=commit or wanted,
            token=token,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            allow_patterns=FILES,
            ignore_patterns=SUBFOLDERS,
        )
        if commit and commit != wanted:  # so that the name is known without a network, too
            reference = Path(folder).parent.parent / "refs" / (wanted or "main")
            reference.parent.mkdir(parents=True, exist_ok=True)
            reference.write_text(commit)
    except InputError:
        raise
    except errors.LocalEntryNotFoundError:
        reason = "the Hugging Face Hub cannot be reached, and the local cache has no complete copy"
    except errors.RevisionNotFoundError:
        reason = f"the repository on the Hugging Face Hub has no revision {revision or given!r}"
    except errors.GatedRepoError:
        reason = "its owner on the Hugging Face Hub grants access on request: see its page, then `hf auth login`"
    except errors.RepositoryNotFoundError:
        reason = "the Hugging Face Hub has no such repository, or a private one: `hf auth login`"
    except Exception as error:  # from whichever HTTP library it uses
        reason = f"the Hugging Face Hub says: {_first_line(error)}"
    else:
        return Path(folder)
    raise InputError(
        f"model is {name!r}, which is not a local folder, and {reason}; "
        "allowed: a run folder, a repository (owner/name), or a model that ships with the package"
    )


def _commit(repository: str, revision: str | None, token: str | bool | None) -> str | None:
    """The hash of a revision's commit; None where the Hub cannot be reached, or does not answer in time.

    It names a folder of the cache, so a server's word for it is checked first. A server that sends a byte now and then
    never runs into the library's own time limit: hence the thread.
    """
    from huggingface_hub import HfApi, errors

    if revision and COMMIT.fullmatch(revision):
        return revision
    answer: list[Any] = []

    def ask() -> None:
        try:
            answer.append(HfApi(token=token).model_info(repository, revision=revision or "main", timeout=PATIENCE).sha)
        except Exception as error:
            answer.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    if not answer:
        raise InputError(f"the Hugging Face Hub did not answer in {PATIENCE} s; allowed: HF_HUB_OFFLINE=1, or wait")
    (commit,) = answer
    if isinstance(commit, errors.RepositoryNotFoundError | errors.RevisionNotFoundError):
        raise commit
    if isinstance(commit, Exception):
        return None  # `snapshot_download` says why, or takes what is cached
    if not COMMIT.fullmatch(str(commit)):
        raise InputError(f"commit of {repository} on the Hub is {shown(commit)}; allowed: 40 hexadecimal digits")
    return commit


def pinned(name: str) -> str:
    """A repository's name with its current commit (owner/name@commit); any other name unchanged.

    A command resolves the commit once, uses it throughout, and records it beside its figures.
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
    *,
    token: str | bool | None = None,
    private: bool | None = None,
    create_pr: bool = False,
    commit_message: str = "Upload a FARMER model",
    license: str = "mit",
) -> str:
    """Upload a run folder's config.json, model and student in one commit; returns its URL   (PushOptions).

    Creates the repository if it does not exist, and adds a model card if it has none. config.json is uploaded
    unchanged, including the run's settings: the names of its data set and folders.
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
            has_student = folder / "student.safetensors" in weights
            card = model_card(repository, config, license=license, with_student=has_student)
            operations.append(CommitOperationAdd("README.md", card.encode()))
        commit = api.create_commit(repository, operations, commit_message=commit_message, create_pr=create_pr)
    except Exception as error:  # from whichever HTTP library it uses
        raise InputError(
            f"repository is {repository!r}, which cannot be pushed to ({_first_line(error)}); "
            "allowed: owner/name, after `hf auth login` with a token that may write"
        ) from error
    return commit.commit_url


def model_card(repository: str, config: CardFacts, *, license: str, with_student: bool) -> str:
    """README.md of a repository: what the model is and how to load it, under the YAML header that the Hub indexes."""
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

A [FARMER]({PAPER}) (Flow AutoRegressive Transformer over Pixels): an exact density of images that can be sampled.
{", ".join(facts)}.

```python
import torch
from {LIBRARY} import Farmer, OneStepStudent

{newline.join(load)}
```

Or `python -m {LIBRARY}.sample --run {repository} --out samples.png`. The weights are safetensors, without code.
"""


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
