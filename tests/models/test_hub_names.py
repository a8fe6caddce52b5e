"""The Hugging Face Hub: a repository's config.json and weights give what timm makes of them; its
cache is enough; without a network there is one line, soon; show and check ask for nothing.

The Hub is played by a server of this machine.
"""

import hashlib
import io
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save
from timm.models import PretrainedCfg

import toy
from lookalike import pipeline
from lookalike.errors import BackboneError, RunError
from lookalike.experiment import Experiment
from lookalike.models import (
    Architecture,
    Backbone,
    card,
    folder_files,
    hub,
    make_backbone,
    open_backbone,
    published,
)
from lookalike.models.hub import Repository, repository
from lookalike.runs import Run
from lookalike.show import show
from lookalike.stages.pretrain import pretrain

TINY = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
VIT = {"patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def described(model: torch.nn.Module, name: str, size: int, args: dict[str, Any]) -> dict[str, Any]:
    """A config.json as timm's push_to_hf_hub writes it."""
    shown = {"input_size": [3, size, size], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    shown |= {"crop_pct": 0.9, "num_classes": 7, "first_conv": "conv1", "classifier": "fc"}
    shown["fixed_input_size"] = "vit" in name
    return {
        "architecture": name,
        "num_classes": 7,
        "num_features": model.num_features,
        "global_pool": "avg",
        "model_args": args,
        "pretrained_cfg": shown,
    }


def repositories() -> dict[str, dict[str, bytes]]:
    """What the Hub of these tests holds."""
    torch.manual_seed(0)
    resnet = timm.create_model("resnet18", num_classes=7, **TINY)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=48, num_classes=7, **VIT)
    gem = Backbone(Architecture("resnet18", 40, pool="gem", args=TINY, mean=(0.5, 0.4, 0.3)))
    assert gem.gem is not None
    torch.nn.init.constant_(gem.gem.p, 2.5)
    config = described(resnet, "resnet18", 48, TINY)
    pickled = {"config.json": json.dumps(config).encode(), "pytorch_model.bin": torch_file(resnet)}
    huge = {**config, "model_args": {**TINY, "channels": [12000, 12000, 12000, 12000]}}
    wild = {**config, "model_args": {"channels": [10**9] * 4}}
    return {
        "user/resnet": folder(resnet, config),
        "user/vit": folder(vit, described(vit, "vit_tiny_patch16_224", 48, VIT)),
        "user/pickled": pickled,
        "user/huge": folder(resnet, huge),
        "user/wild": folder(resnet, wild),
        "user/no_model": {"config.json": b'{"model_type": "bert"}'},
        "user/bare": {"config.json": json.dumps(config).encode()},
        "user/ours": folder_files(gem),
    }


def folder(model: torch.nn.Module, config: dict[str, Any]) -> dict[str, bytes]:
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    return {"config.json": json.dumps(config).encode(), "model.safetensors": save(weights)}


def torch_file(model: torch.nn.Module) -> bytes:
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.getvalue()


class Hub(NamedTuple):
    """A Hub that answers at `url`; `asked`: the requests so far; `files`: what it holds."""

    url: str
    asked: list[str]
    files: dict[str, dict[str, bytes]]


@pytest.fixture(scope="module")
def the_hub() -> Iterator[Hub]:
    files, asked = repositories(), []

    class Answers(BaseHTTPRequestHandler):
        """HEAD and GET /user/model/resolve/REVISION/FILE."""

        def log_message(self, *_: Any) -> None:
            """In silence."""

        def found(self) -> bytes | None:
            asked.append(f"{self.command} {self.path}")
            user, model, _, _, file = (self.path.strip("/").split("/", 4) + [""] * 5)[:5]
            name = f"{user}/{model}"
            content = files.get(name, {}).get(file)
            self.send_response(200 if content is not None else 404)
            if content is None:
                missing = "EntryNotFound" if name in files else "RepoNotFound"
                self.send_header("X-Error-Code", missing)
            body = content or b""
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            return content

        def do_HEAD(self) -> None:
            self.found()

        def do_GET(self) -> None:
            self.wfile.write(self.found() or b"")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Hub(f"http://127.0.0.1:{server.server_port}", asked, files)
    server.shutdown()
    server.server_close()


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A cache of its own, with which no Hub goes yet."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return tmp_path / "home"


def move_to(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What huggingface_hub reads of HF_ENDPOINT when it is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def there(home, the_hub, monkeypatch) -> Hub:
    """The Hub of these tests in the place of the true one."""
    move_to(the_hub.url, monkeypatch)
    the_hub.asked.clear()
    return the_hub


def test_a_repository_gives_what_timm_makes_of_it(there):
    usual = (48, 0.9, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    for name, model, args in (
        ("hf-hub:user/resnet", "resnet18", TINY),
        ("hf-hub:user/vit", "vit_tiny_patch16_224", VIT),
        ("hf-hub:user/pickled", "resnet18", TINY),
    ):
        backbone = make_backbone(Architecture(name, pretrained=True)).eval()
        theirs = timm.create_model(name, pretrained=True, num_classes=0).eval()
        a = backbone.architecture
        assert (a.name, a.size, a.crop, a.mean, a.std, a.args) == (model, *usual, args)
        x = torch.randn(2, 3, 48, 48)
        with torch.no_grad():
            assert backbone(x).equal(theirs(x))


def test_without_pretrained_only_the_architecture_is_asked_for(there):
    backbone = make_backbone(Architecture("hf-hub:user/resnet"))
    assert backbone.architecture.args == TINY
    assert [line.rpartition("/")[2] for line in there.asked] == ["config.json"] * 3


def test_the_recipe_has_the_last_word(there):
    asked = Architecture("hf-hub:user/resnet", size=(40, 64), channels=1, pretrained=True)
    backbone = make_backbone(asked)
    assert (backbone.architecture.size, backbone.architecture.mean) == ((40, 64), None)
    assert "conv1 from 3 channels to 1, as timm does" in backbone.taken.line()
    like = Architecture("resnet18", 32, mean=(0.5, 0.4, 0.3))
    opened = open_backbone("hf-hub:user/resnet", like)
    assert (opened.architecture.size, opened.architecture.mean) == (32, (0.5, 0.4, 0.3))


CHILD = """
import warnings; warnings.simplefilter("ignore")
from lookalike.models import Architecture, card, make_backbone
print(card.weights_digest(make_backbone(Architecture("hf-hub:user/vit", pretrained=True))))
"""


def test_the_cache_is_enough_in_a_program_that_is_offline(there, home):
    asked = Architecture("hf-hub:user/vit", pretrained=True)
    digest = card.weights_digest(make_backbone(asked))
    there.asked.clear()
    assert card.weights_digest(make_backbone(asked)) == digest
    assert there.asked == []
    env = {"HF_HOME": str(home), "HF_ENDPOINT": "http://192.0.2.1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD], env={**os.environ, **env}, capture_output=True, text=True
    )
    assert done.stdout == f"{digest}\n", done.stderr[-3000:]


REFUSED = {
    "none": "the Hub answers 404: there is no such repository or revision, or it asks for a token",
    "huge": "the weights do not fit config.json, which asks for larger tensors than they explain",
    "wild": r"config.json describes no model of timm's \(ValueError: its numbers are not finite",
    "no_model": r"config.json describes no model of timm's \(KeyError: 'architecture'\): take",
    "bare": "the repository has no model.safetensors and no pytorch_model.bin: take another",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_repository_that_cannot_be_used_is_one_line(name, there):
    with pytest.raises(BackboneError, match=rf"^hf-hub:user/{name}: .*{REFUSED[name]}") as caught:
        make_backbone(Architecture(f"hf-hub:user/{name}", pretrained=True))
    assert str(caught.value).isprintable()


def test_an_architecture_beyond_any_model_is_refused_before_it_is_made(there):
    with pytest.raises(BackboneError, match=r"^hf-hub:user/huge: its config.json asks for larger"):
        make_backbone(Architecture("hf-hub:user/huge"))


def test_what_lookalike_exported_comes_back_from_the_hub(there):
    made = make_backbone(Architecture("hf-hub:user/ours", pretrained=True))
    assert (made.gem.p.item(), made.architecture.pool, made.architecture.size) == (2.5, "gem", 40)
    assert made.architecture.mean == (0.5, 0.4, 0.3)


@pytest.fixture
def black_hole() -> Iterator[str]:
    """A server that accepts and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(50)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def closed() -> str:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def refused_soon(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a recipe's published weights are refused by."""
    move_to(endpoint, monkeypatch)
    monkeypatch.setattr(hub, "SECONDS", 0.3)
    said = []
    for name in ("hf-hub:user/x", "resnet18"):
        with pytest.raises(BackboneError) as caught:
            make_backbone(Architecture(name, pretrained=True))
        said.append(str(caught.value))
    assert said[0].startswith("hf-hub:user/x: config.json is not in the cache, and ")
    assert said[1].startswith("hf-hub:timm/resnet18.a1_in1k: model.safetensors is not in the cache")
    return said


def test_a_closed_port_is_one_line(home, monkeypatch):
    said = refused_soon(closed(), monkeypatch)
    assert all("127.0.0.1 cannot be reached ([Errno 111]" in line for line in said)


def test_a_server_that_never_answers_is_waited_for_no_longer_than_said(
    home, black_hole, monkeypatch
):
    said = refused_soon(black_hole, monkeypatch)
    assert all(
        ("cannot be reached (" in line and "timed out" in line) or "0.3 s" in line for line in said
    )


def test_a_resolver_that_never_answers_is_not_waited_for(home, monkeypatch):
    blocked = threading.Event()

    def waits(*_: Any, **__: Any) -> None:
        blocked.wait(30)
        raise OSError("no such host")

    monkeypatch.setattr(socket, "getaddrinfo", waits)
    said = refused_soon("http://hub.example", monkeypatch)
    blocked.set()
    assert all("hub.example cannot be reached (no answer within 0.3 s)" in line for line in said)


def test_no_longer_than_five_seconds():
    assert hub.SECONDS < 5


def test_weights_at_an_address_of_their_own_are_asked_for_too(home, black_hole, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(home))
    monkeypatch.setattr(hub, "SECONDS", 0.3)
    given = PretrainedCfg(url=f"{black_hole}/weights.pth")
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda _: given)
    with pytest.raises(BackboneError, match=r"weights\.pth is not in the cache, and 127\.0\.0\.1"):
        hub.published("resnet18")


@pytest.mark.parametrize("how", ["then", "now"])
def test_offline_is_honoured_at_once(how, there, monkeypatch):
    if how == "then":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("hf-hub:user/resnet", "resnet18"):
        with pytest.raises(BackboneError, match="HF_HUB_OFFLINE forbids to ask for it"):
            make_backbone(Architecture(name, pretrained=True))
    assert there.asked == []


# --- verbs ----------------------------------------------------------------------------------------


def asking(name: str, **more: Any) -> Experiment:
    """The toy recipe on published weights."""
    return toy.recipe(
        backbone=json.dumps({"name": name, "channels": 1, "pretrained": True, **more})
    )


def shown(recipe: Experiment, out: Path) -> str:
    """What show says, after check and preview."""
    pipeline.check(Run(recipe, out / "run", ranks=1))
    pipeline.draw(recipe, out / "preview.png", images=1)
    return show(recipe)


@pytest.mark.parametrize("name", ["resnet18", "timm/resnet18.a1_in1k"])
def test_show_check_and_preview_of_published_weights_ask_no_network(name, there, tmp_path):
    assert "backbone    resnet18" in shown(asking(name, size=32), tmp_path)
    assert there.asked == []


def test_show_and_check_know_what_is_in_the_cache(there, tmp_path):
    make_backbone(Architecture("hf-hub:user/resnet", pretrained=True))
    there.asked.clear()
    said = shown(asking("hf-hub:user/resnet"), tmp_path)
    assert "backbone    resnet18: (B, 1, 48, 48)" in said
    assert "weights     model.safetensors: 78 tensors" in said
    assert there.asked == []


def test_show_and_check_of_an_unknown_repository_say_how_to_know_it(there, tmp_path):
    recipe = asking("hf-hub:user/resnet")
    for verb in (show, lambda r: pipeline.check(Run(r, tmp_path / "run", ranks=1))):
        with pytest.raises(BackboneError, match=r"run `hf download user/resnet config\.json` once"):
            verb(recipe)
    assert there.asked == []


def test_a_run_fetches_them_and_is_refused_when_they_have_changed(there, tmp_path):
    recipe = asking("hf-hub:user/resnet", size=16)
    folder = pretrain(recipe, tmp_path / "run")
    assert card.read(folder)["weights"].endswith(", hf-hub:user/resnet")
    content = there.files["user/resnet"]["model.safetensors"]
    path = hub.cached(repository("hf-hub:user/resnet"), hub.WEIGHTS)
    assert path.read_bytes() == content
    spoilt = bytearray(content)
    spoilt[-1] ^= 1
    path.write_bytes(spoilt)
    with pytest.raises(RunError, match=r"began with other weights \(weights: .*--accept-changes"):
        pretrain(recipe, tmp_path / "run")


# --- names ----------------------------------------------------------------------------------------


def test_names_of_repositories():
    assert repository("hf-hub:user/model") == Repository("user/model", None)
    assert repository("timm/resnet18.a1_in1k") == Repository("timm/resnet18.a1_in1k", None)
    assert repository("hf-hub:user/model@v1.0") == Repository("user/model", "v1.0")
    assert str(repository("hf-hub:a/b@c")) == "hf-hub:a/b@c"
    assert not hub.is_hub("resnet18")


@pytest.mark.parametrize(
    "name",
    [
        *("hf-hub:", "hf-hub:user", "hf-hub:../x", "hf-hub:a/b/c", "hf-hub:a/..", "timm/"),
        *("hf-hub:a/b@../c", "hf-hub:/etc/passwd", "hf-hub:a/b@", "hf-hub:a/b\n", "hf-hub:a/b--c"),
    ],
)
def test_what_is_no_name_of_a_repository_is_refused(name):
    with pytest.raises(ValueError, match="no repository of the Hub: write hf-hub:user/model"):
        Architecture(name)


def test_a_repository_says_its_stem_itself():
    with pytest.raises(ValueError, match="stem: the repository says which stem there is"):
        Architecture("hf-hub:user/model", stem="cifar")


def test_a_config_of_timm_in_its_old_form(tmp_path):
    old = {"architecture": "resnet18", "input_size": [3, 64, 32], "mean": [0.5, 0.5, 0.5]}
    (tmp_path / "config.json").write_text(json.dumps({**old, "std": [0.1, 0.1, 0.1], "labels": []}))
    said = published.read_config(tmp_path / "config.json", "hf-hub:a/b")
    assert (said.name, said.size, said.mean) == ("resnet18", (64, 32), (0.5, 0.5, 0.5))


CONFIGS: dict[str, Any] = {
    "no model": {"architecture": "../x"},
    "another hub": {"architecture": "hf-hub:a/b"},
    "a list": [],
    "a file": {"architecture": "resnet18", "model_args": {"checkpoint_path": "/etc/passwd"}},
    "a switch": {"architecture": "resnet18", "model_args": {"pretrained": True}},
    "a pooling": {"architecture": "resnet18", "model_args": {"global_pool": "catavgmax"}},
    "a text": {"architecture": "resnet18", "model_args": {"act_layer": "x" * 300}},
    "ours": {"lookalike": {"name": "hf-hub:a/b"}},
    "a shape": {"architecture": "resnet18", "input_size": [3, 224]},
}


@pytest.mark.parametrize("what", CONFIGS)
def test_an_untrusted_config_is_refused_in_one_line(what, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[what]))
    with pytest.raises(BackboneError, match=r"^hf-hub:a/b: its config.json describes no model"):
        published.read_config(tmp_path / "config.json", "hf-hub:a/b")
