"""Models on the Hub: a local cache in its layout, a server that answers as it does, and a faked upload. No network."""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import torch
from helpers import fails_with_one_line
from huggingface_hub import constants

from farmer_ref import Farmer, InputError, OneStepStudent, apply, distill, sample
from farmer_ref.support import hub
from farmer_ref.support.files import PRETRAINED, write_weights
from farmer_ref.support.hub import is_repository, pinned, push_run

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DIGITS = PRETRAINED / "digits"


def same_weights(model, other):
    weights, others = model.state_dict(), other.state_dict()
    return weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of downloads as the Hub's libraries lay it out: files in blobs/, links to them in snapshots/COMMIT/."""
    root = tmp_path / "cache"
    repository = root / "models--owner--digits"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "blobs").mkdir()
    (repository / "snapshots" / COMMIT).mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "student.safetensors"):
        content = (DIGITS / name).read_bytes()
        blob = repository / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (repository / "snapshots" / COMMIT / name).symlink_to(os.path.relpath(blob, repository / "snapshots" / COMMIT))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root))
    monkeypatch.setattr(hub, "_folders", {})
    return root


def test_a_model_and_its_student_from_the_cache(cache):
    model, shipped = Farmer.from_pretrained("owner/digits"), Farmer.from_pretrained("digits")
    assert same_weights(model, shipped) and model.config == shipped.config and not model.training
    assert same_weights(OneStepStudent.from_pretrained("owner/digits"), OneStepStudent.from_pretrained("digits"))
    for options in ({"revision": COMMIT}, {"revision": "main", "local_files_only": True}, {"cache_dir": cache}):
        assert same_weights(Farmer.from_pretrained("owner/digits", **options), shipped)
    assert same_weights(Farmer.from_pretrained(f"owner/digits@{COMMIT}"), shipped)


def test_what_is_here_comes_first_and_asks_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("the network was asked"))
    monkeypatch.chdir(tmp_path)
    model = Farmer.from_pretrained("digits")
    model.save_pretrained("owner/digits")
    assert same_weights(Farmer.from_pretrained("owner/digits"), model)
    assert pinned("owner/digits") == "owner/digits"
    (tmp_path / "runs" / "new").mkdir(parents=True)  # a folder here, even without a model, is no repository
    for name in ("runs/new", "nothing", "a/b/c", "../digits", "/owner/digits"):
        assert not is_repository(name)
        with pytest.raises(InputError, match="holds no config.json with model.safetensors"):
            Farmer.from_pretrained(name)
    with pytest.raises(InputError, match="revision is 'v1'; allowed: none, as digits is on this machine"):
        Farmer.from_pretrained("digits", revision="v1")
    with pytest.raises(InputError, match="option of from_pretrained is 'device'; allowed: revision, token, cache_dir"):
        Farmer.from_pretrained("digits", device="cuda")


def test_commands_take_a_repository_and_say_which_commit(cache, capsys, tmp_path):
    arguments = ["--rows", "1", "--labels", "3", "--student", "--device", "cpu"]
    sample.main(["--run", "owner/digits", "--out", str(tmp_path / "hub.png"), *arguments])
    assert f"samples of owner/digits@{COMMIT}" in capsys.readouterr().out
    sample.main(["--run", "digits", "--out", str(tmp_path / "shipped.png"), *arguments])
    assert (tmp_path / "hub.png").read_bytes() == (tmp_path / "shipped.png").read_bytes()
    capsys.readouterr()
    fails_with_one_line(
        capsys, distill.main, ["--run", "owner/digits"], f"out is empty, and owner/digits@{COMMIT} is on the Hugg"
    )
    out = tmp_path / "classes.json"
    apply.main(["classify", "--run", "owner/digits", "--count", "2", "--draws", "1", "--out", str(out)])
    assert json.loads(out.read_text())["run"] == f"owner/digits@{COMMIT}"


def test_a_repository_that_is_not_there_is_one_line(cache, capsys):
    parts = [
        "model is 'owner/other', which is not a local folder",
        "the Hugging Face Hub cannot be reached",
        "a run folder",
    ]
    fails_with_one_line(capsys, sample.main, ["--run", "owner/other"], *parts)
    (cache / "models--owner--digits" / "snapshots" / COMMIT / "model.safetensors").unlink()
    fails_with_one_line(capsys, sample.main, ["--run", "owner/digits"], "holds no config.json with model.safetensors")


class Hub(BaseHTTPRequestHandler):
    """The few answers of the Hub that a download needs: one repository, whose files are `served`, under one commit."""

    served: dict[str, bytes]
    asked: list[str]

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/owner/digits/revision/"):
            known = path.endswith(("main", COMMIT))
            siblings = [{"rfilename": name} for name in self.served]
            body = json.dumps({"id": "owner/digits", "sha": COMMIT, "siblings": siblings}).encode()
            return self.answer(200, body) if known else self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        if path == f"/api/models/owner/digits/tree/{COMMIT}":
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in self.served.items()
            ]
            return self.answer(200, json.dumps(tree).encode())
        if path.startswith(f"/owner/digits/resolve/{COMMIT}/"):
            name = path.partition(f"{COMMIT}/")[2]
            self.asked.append(name)
            content = self.served[name]
            return self.answer(
                200, content, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
            )
        if "gated" in path:
            return self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
        return self.answer(401, b"", {"X-Error-Code": "RepoNotFound"})

    def answer(self, status, body, headers=None):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_downloads_take_safetensors_and_json_alone_and_errors_are_one_line(tmp_path):
    Hub.asked = []
    Hub.served = {path.name: path.read_bytes() for path in DIGITS.iterdir()}
    Hub.served |= {"pytorch_model.bin": b"", "code.py": b"", "checkpoints/step-1/model.safetensors": b""}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = """
import sys
from farmer_ref import Farmer, InputError, OneStepStudent
for name in sys.argv[1:]:
    try:
        print(sum(p.numel() for p in Farmer.from_pretrained(name).parameters()))
    except InputError as error:
        print(error)
OneStepStudent.from_pretrained(sys.argv[1])
"""
    names = ["owner/digits", "owner/digits@v9", "owner/none", "owner/gated", "owner/two--dashes"]
    environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
    }
    line = [sys.executable, "-c", code, *names]
    done = subprocess.run(line, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[2])
    server.shutdown()
    assert done.returncode == 0, done.stderr
    size, *errors = done.stdout.splitlines()
    assert int(size) == sum(p.numel() for p in Farmer.from_pretrained("digits").parameters())
    wanted = ["no revision 'v9'", "no such repository, or a private one", "grants access on request", "says: "]
    assert len(errors) == 4
    for error, name, part in zip(errors, names[1:], wanted, strict=True):
        assert error.startswith(f"model is {name!r}, which is not a local folder") and part in error
    assert set(Hub.asked) == {"config.json", "model.safetensors", "student.safetensors"}


class HostileHub(Hub):
    """Names that lead out of the cache, and answers that never come, or byte by byte."""

    def do_GET(self):
        path, self.close_connection = self.path.partition("?")[0], True
        owner, name, *_ = path.removeprefix("/api/models").strip("/").split("/")
        if path.startswith("/api/models"):
            commit = "../../../../outside" if name == "commit" else COMMIT
            names = ["../../../../outside.safetensors", "/outside.safetensors"] if name == "names" else []
            siblings = [{"rfilename": file} for file in [*names, "config.json", "model.safetensors"]]
            body = json.dumps({"id": f"{owner}/{name}", "sha": commit, "siblings": siblings}).encode()
            (self.drip if name == "slow-to-answer" else partial(self.answer, 200))(body)
            return
        self.asked.append(path)
        etag = "../../../../outside" if name == "hash" else hashlib.sha1(path.encode()).hexdigest()
        length = 0 if name == "names" else 1000
        self.send_response(200)
        for key, value in {"Content-Length": str(length), "ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET" and name == "silent":
            time.sleep(60)
        elif self.command == "GET":
            self.drip(bytes(length))

    def drip(self, content):
        with contextlib.suppress(ConnectionError):  # nobody waits any more
            for byte in content:
                self.wfile.write(bytes([byte]))
                time.sleep(0.5)


def test_a_hostile_server_names_nothing_outside_of_the_cache_and_is_not_waited_for(tmp_path):
    HostileHub.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), HostileHub)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = """
import sys, time
from farmer_ref.support import hub
from farmer_ref.support.errors import InputError
hub.PATIENCE = hub.STALLED = 2
for name in sys.argv[1:]:
    began = time.monotonic()
    try:
        print(sorted(path.name for path in hub.download(name).iterdir()))
    except InputError as error:
        print(f"{time.monotonic() - began < 20} {error}")
"""
    home = tmp_path / "a" / "b" / "c" / "d"
    home.mkdir(parents=True)
    environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
    }
    names = [
        "owner/commit",
        "owner/names@../../../../../outside",
        "owner/hash",
        "owner/dripping",
        "owner/silent",
        "owner/slow-to-answer",
    ]
    line = [sys.executable, "-c", code, *names]
    done = subprocess.run(line, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[2])
    server.shutdown()
    assert done.returncode == 0, done.stderr
    commit, files, digest, *slow = done.stdout.splitlines()
    assert commit.startswith("True commit of owner/commit") and "allowed: 40 hexadecimal digits" in commit
    assert files == "['config.json', 'model.safetensors']"
    assert digest.startswith("True hash of config.json in owner/hash") and "hexadecimal digits" in digest
    assert len(slow) == 3
    assert all(error.startswith("True the Hugging Face Hub sent nothing in 2 s") for error in slow), slow
    assert not list(tmp_path.rglob("*outside*"))
    assert not [path for path in HostileHub.asked if "outside" in path]


@pytest.fixture
def uploads(tmp_path, monkeypatch):
    """`HfApi` whose repositories are folders here, and the list of the commits that it was asked for."""
    commits = []

    class Api:
        def __init__(self, token=None, library_name=None):
            if token == "wrong":
                raise OSError("Invalid user token.\nSee the docs")

        def create_repo(self, repository, private, exist_ok):
            (tmp_path / "hub" / repository).mkdir(parents=True, exist_ok=exist_ok)
            return huggingface_hub.RepoUrl(f"https://huggingface.co/{repository}")

        def file_exists(self, repository, name):
            return (tmp_path / "hub" / repository / name).is_file()

        def create_commit(self, repository, operations, *, commit_message, create_pr):
            commits.append((commit_message, [operation.path_in_repo for operation in operations]))
            for operation in operations:
                with operation.as_file() as file:
                    (tmp_path / "hub" / repository / operation.path_in_repo).write_bytes(file.read())
            url = f"https://huggingface.co/{repository}/commit/{COMMIT}"
            return huggingface_hub.CommitInfo(
                commit_url=url, commit_message=commit_message, commit_description="", oid=COMMIT
            )

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return tmp_path / "hub", commits


def test_push_to_hub_and_back(uploads):
    root, commits = uploads
    model = Farmer.from_pretrained("digits")
    url = model.push_to_hub("me/digits", license="cc0-1.0", commit_message="A first model")
    assert url == f"https://huggingface.co/me/digits/commit/{COMMIT}"
    assert commits == [("A first model", ["config.json", "model.safetensors", "README.md"])]
    pushed = Farmer.from_pretrained(root / "me" / "digits")
    assert same_weights(pushed, model) and pushed.config == model.config
    card = huggingface_hub.ModelCard.load(root / "me" / "digits" / "README.md")
    assert (card.data.library_name, card.data.license) == ("farmer_ref", "cc0-1.0")
    assert "https://arxiv.org/abs/2510.23588" in card.text and 'Farmer.from_pretrained("me/digits")' in card.text
    assert "student" not in card.text.partition("```python")[2].replace("OneStepStudent", "")
    (root / "me" / "digits" / "README.md").write_text("my own words")
    model.push_to_hub("me/digits")
    assert (root / "me" / "digits" / "README.md").read_text() == "my own words"


def test_a_pushed_run_has_its_student_and_settings(uploads, tmp_path, monkeypatch):
    root, commits = uploads
    push_run(DIGITS, "me/run")
    assert commits[0][1] == ["config.json", "model.safetensors", "student.safetensors", "README.md"]
    for name in ("config.json", "model.safetensors", "student.safetensors"):
        assert (root / "me" / "run" / name).read_bytes() == (DIGITS / name).read_bytes()
    text = (root / "me" / "run" / "README.md").read_text()
    assert "8×8 images, 1 colour channel, classes 0 to 9, trained on `digits`, with a one-step student" in text
    code = text.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(root)  # where me/run is a run folder
    names: dict = {}
    exec(code, names)
    assert names["images"].shape == (1, 1, 8, 8)


def test_what_cannot_be_pushed_is_one_line(uploads, tmp_path):
    with pytest.raises(
        InputError, match=r"repository is 'me/x', .*\(Invalid user token\.\); allowed: owner/name"
    ) as info:
        Farmer.from_pretrained("digits").push_to_hub("me/x", token="wrong")
    assert "\n" not in str(info.value)
    (tmp_path / "config.json").write_text("[]")
    write_weights(tmp_path / "model.safetensors", {})
    with pytest.raises(InputError, match=r"config.json: content is \[\]; allowed: an object"):
        push_run(tmp_path, "me/x")
    with pytest.raises(InputError, match="allowed: a run folder"):
        push_run(tmp_path / "nothing", "me/x")
