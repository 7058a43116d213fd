"""Models on the Hugging Face Hub: a repository owner/name holds a run folder's config.json and safetensors.

`PyTorchModelHubMixin` is unfit: it falls back to a pickle where a repository has no safetensors; it silently accepts
weights that do not fit (strict=False); it queries the network even for a model that ships with the package; its format
is not that of our config.json, which also holds the run's settings; and importing it takes longer than the rest of this
package. `huggingface_hub` itself does the work: it is imported when a repository is requested, and only config.json and
*.safetensors are ever downloaded.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypedDict

from pydantic import BaseModel

from farmer_ref.support.errors import InputError, shown
from farmer_ref.support.settings import parse_json

LIBRARY = "farmer_ref"
PAPER = "https://arxiv.org/abs/2510.23588"
REPOSITORY = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@(\S+))?")  # owner/name, or owner/name@revision
COMMIT, HASH = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # they name folders and files
PATIENCE, STALLED = 30, 120  # seconds for an answer, and in which a download must bring something (10 MB at a time)
FILES = ("config.json", "*.safetensors")  # downloaded, unless they are in a folder (checkpoints/)
LAST = "model.safetensors"
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
    class_names: tuple[str, ...] = ()


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
    from huggingface_hub import constants, errors, snapshot_download

    repository, given = REPOSITORY.fullmatch(name).groups()
    wanted, about = revision or given, None
    cache = Path(cache_dir or constants.HF_HUB_CACHE).expanduser()
    own = cache / f"models--{repository.replace('/', '--')}"
    try:
        if not local_files_only:
            known = own / "snapshots" / wanted if wanted and COMMIT.fullmatch(wanted) else None
            if known and all((known / name).is_file() for name in ("config.json", LAST)) and not force_download:
                return known
            about = _in_time(lambda: _about(repository, wanted, token), lambda: 0, PATIENCE)
        if about is None or isinstance(about, Exception):  # not reached: what is cached will do
            return Path(snapshot_download(repository, revision=wanted, cache_dir=cache, local_files_only=True))
        commit, files = about
        folder = _in_time(
            lambda: _fetched(repository, commit, files, token=token, cache_dir=cache, force_download=force_download),
            lambda: _bytes_in(own),
            STALLED,
        )
        reference = own / "refs" / (wanted or "main")  # so that the name is known without a network, too
        if commit != wanted and reference.resolve().is_relative_to(own.resolve()):
            reference.parent.mkdir(parents=True, exist_ok=True)
            reference.write_text(commit)
        return folder
    except InputError:
        raise
    except errors.LocalEntryNotFoundError:
        reason = "the Hugging Face Hub cannot be reached, and the local cache has no complete copy"
        if isinstance(about, errors.HfHubHTTPError):
            reason = f"the Hugging Face Hub says: {_first_line(about)}"
    except errors.RevisionNotFoundError:
        reason = f"the repository on the Hugging Face Hub has no revision {wanted!r}"
    except errors.GatedRepoError:
        reason = "its owner on the Hugging Face Hub grants access on request: see its page, then `hf auth login`"
    except errors.RepositoryNotFoundError:
        reason = "the Hugging Face Hub has no such repository, or a private one: `hf auth login`"
    except Exception as error:  # from whichever HTTP library it uses
        reason = f"the Hugging Face Hub says: {_first_line(error)}"
    raise InputError(
        f"model is {name!r}, which is not a local folder, and {reason}; "
        "allowed: a run folder, a repository (owner/name), or a model that ships with the package"
    )


def _about(repository: str, revision: str | None, token: str | bool | None) -> tuple[str, list[str]] | Exception:
    """The commit of a revision and the names of the files to download; the exception where the Hub is not reached.

    Both name folders and files of the cache, so a server's word for them is checked first.
    """
    from huggingface_hub import HfApi, errors

    try:
        about = HfApi(token=token).model_info(repository, revision=revision or "main", timeout=PATIENCE)
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
        raise
    except Exception as error:
        return error
    if not COMMIT.fullmatch(str(about.sha)):
        raise InputError(f"commit of {repository} on the Hub is {shown(about.sha)}; allowed: 40 hexadecimal digits")
    names = [str(file.rfilename) for file in about.siblings or ()]
    chosen = [name for name in names if not set("/\\:") & set(name) and any(fnmatch(name, kind) for kind in FILES)]
    return str(about.sha), sorted(chosen, key=lambda name: (name == LAST, name))


def _fetched(
    repository: str, commit: str, names: list[str], *, token: str | bool | None, cache_dir: Path, force_download: bool
) -> Path:
    """The folder of a commit in the cache, with these files; the model comes last, so where it is, all are."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    folder = cache_dir
    for name in names:
        about = get_hf_file_metadata(hf_hub_url(repository, name, revision=commit), token=token)
        for what, said, allowed in (("commit", about.commit_hash, COMMIT), ("hash", about.etag, HASH)):
            if not allowed.fullmatch(str(said)):
                raise InputError(
                    f"{what} of {name} in {repository} on the Hub is {shown(said)}; allowed: hexadecimal digits"
                )
        options = {"cache_dir": cache_dir, "token": token, "force_download": force_download}
        folder = Path(hf_hub_download(repository, name, revision=commit, **options)).parent
    return folder


def _bytes_in(folder: Path) -> int:
    """The size of all files in a folder, some of which may be renamed meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.lstat().st_size
    return total


def _in_time(work: Callable[[], Any], progress: Callable[[], int], seconds: float) -> Any:
    """The result of work with a server. Raises `InputError` once `progress` has stood still for so many seconds.

    A server that sends a byte now and then never runs into the library's own time limit. Hence a thread, which the end
    of the program does not wait for.
    """
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            results.append(_Raised(error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    done, since = progress(), time.monotonic()
    while thread.is_alive():
        thread.join(0.2)
        if (now := progress()) != done:
            done, since = now, time.monotonic()
        if thread.is_alive() and time.monotonic() - since > seconds:
            raise InputError(f"the Hugging Face Hub sent nothing in {seconds} s; allowed: HF_HUB_OFFLINE=1, or wait")
    (result,) = results
    if isinstance(result, _Raised):
        raise result.error
    return result


class _Raised:
    """What a thread raised."""

    def __init__(self, error: BaseException):
        self.error = error


def pinned(name: str) -> str:
    """A repository's name with its current commit (`owner/name@commit`); any other name unchanged.

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
    names = [f"{label} `{name.replace('`', '')}`" for label, name in enumerate(model.class_names) if name != str(label)]
    facts += [f"classes 0 to {classes - 1}" + f" ({', '.join(names)})" * bool(names)] if classes else []
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
