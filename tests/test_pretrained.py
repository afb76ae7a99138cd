"""Pretrained weights from a server that speaks the hub's protocol. Oracle: what huggingface_hub and timm then find."""

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from file_server import Handler, deaf, redirect, send, serving, without_proxies
from huggingface_hub import constants, hf_hub_download
from safetensors.torch import save
from timm.models._hub import has_hf_hub

from pitstop import pretrained, weights
from pitstop.download import hub, transfer
from pitstop.errors import UserError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL, REPOSITORY = "test_resnet", "timm/test_resnet.r160_in1k"


class Hub:
    """Files of one repository, as the hub serves them: a redirect with what it knows, to a store that does not."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.cut_after: int | None = None
        self.refuse: list[int] = []  # statuses, before it answers
        self.moved = False
        self.etags = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}

    def behave(self, handler: Handler, start: int) -> None:
        if self.refuse:
            handler.send_error(self.refuse.pop(0))
        elif handler.path.startswith("/store/"):
            send(handler, self.files[handler.path[7:]], start, cut_after=self.cut_after, headers={"ETag": '"store"'})
        elif self.moved and not handler.path.startswith("/new/"):
            redirect(handler, "/new" + handler.path, status=307)
        else:
            _, _, name = handler.path.partition("/resolve/main/")
            if REPOSITORY not in handler.path or name not in self.files:
                handler.send_error(404)
                return
            about = {"X-Repo-Commit": COMMIT, "X-Linked-Etag": f'"{self.etags[name]}"'}
            store = f"http://localhost:{handler.server.server_port}/store/{name}"  # another host, as that of the hub
            redirect(handler, store, about | {"X-Linked-Size": str(len(self.files[name]))})


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return timm.create_model(MODEL).state_dict()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    without_proxies(monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for module in (transfer, hub):
        monkeypatch.setattr(module, "BACKOFF_SECONDS", 0.0)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "hub"


@pytest.fixture
def server(tensors: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Hub, list[str]]]:
    held = Hub({"model.safetensors": save(tensors)})
    with serving(held.behave) as state:
        monkeypatch.setattr(constants, "ENDPOINT", state.base)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", state.base + "/{repo_id}/resolve/{revision}/{filename}"
        )
        yield held, state.paths


def find(said: list[str] | None = None, *, model: str = MODEL, may_write: bool = True) -> Path | None:
    return pretrained.find(model, may_write=may_write, say=(said if said is not None else []).append)


def test_what_is_fetched_is_found_by_others_and_asked_for_once(
    cache: Path, server: tuple[Hub, list[str]], tensors: dict[str, torch.Tensor]
) -> None:
    hub, paths = server
    found = find()
    assert found is not None
    assert found.read_bytes() == hub.files["model.safetensors"]
    by_huggingface = hf_hub_download(REPOSITORY, "model.safetensors", cache_dir=cache, local_files_only=True)
    assert Path(by_huggingface) == found
    asked = len(paths)
    assert find() == found
    assert len(paths) == asked
    files = {path.relative_to(cache) for path in cache.rglob("*") if not path.is_dir() and path.suffix != ".lock"}
    storage = Path("models--timm--test_resnet.r160_in1k")
    blob = Path("blobs", hub.etags["model.safetensors"])
    assert files == {
        storage / part for part in (blob, Path("refs/main"), Path("snapshots", COMMIT, "model.safetensors"))
    }


@pytest.mark.skipif(not has_hf_hub(), reason="this timm is too old for this huggingface_hub")
def test_timm_itself_finds_it(cache: Path, server: object, tensors: dict[str, torch.Tensor]) -> None:
    find()
    model = timm.create_model(MODEL, pretrained=True, cache_dir=cache)
    assert all(torch.equal(value, tensors[key]) for key, value in model.state_dict().items())


def test_what_huggingface_hub_has_brought_is_found(cache: Path, server: tuple[Hub, list[str]]) -> None:
    """By its own code, from the same server, and without a request of ours."""
    _, paths = server
    by_huggingface = hf_hub_download(REPOSITORY, "model.safetensors", cache_dir=cache)
    asked = len(paths)
    assert find(may_write=False) == Path(by_huggingface)
    assert len(paths) == asked


def test_a_cut_is_continued_and_the_checksum_verified(cache: Path, server: tuple[Hub, list[str]]) -> None:
    hub, _ = server
    hub.cut_after = 700_000
    said: list[str] = []
    found = find(said)
    assert found is not None
    assert found.read_bytes() == hub.files["model.safetensors"]
    assert any("connection was cut" in line for line in said)
    assert all("test_resnet" in line for line in said)


def test_another_file_than_the_hub_announces_is_refused(cache: Path, server: tuple[Hub, list[str]]) -> None:
    server[0].etags["model.safetensors"] = "a" * 64
    with pytest.raises(UserError, match=r"serves another file: expected SHA256 aaaa"):
        find()
    assert not list(cache.rglob("*.safetensors"))


def test_only_the_old_format(cache: Path, server: tuple[Hub, list[str]]) -> None:
    hub, _ = server
    hub.files["pytorch_model.bin"] = hub.files.pop("model.safetensors")
    hub.etags["pytorch_model.bin"] = hub.etags.pop("model.safetensors")
    found = find()
    assert found is not None
    assert found.name == "pytorch_model.bin"
    assert find() == found


def test_a_repository_that_has_moved_and_a_hub_that_is_busy(cache: Path, server: tuple[Hub, list[str]]) -> None:
    hub, paths = server
    hub.moved, hub.refuse = True, [429, 503]
    assert find() is not None
    assert f"/new/{REPOSITORY}/resolve/main/model.safetensors" in paths


@pytest.mark.parametrize(
    ("status", "match"), [(404, "has no model.safetensors and no pytorch_model.bin"), (401, "wants a login")]
)
def test_what_the_hub_refuses(cache: Path, status: int, match: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda handler, start: handler.send_error(status)) as state:
        monkeypatch.setattr(constants, "ENDPOINT", state.base)
        with pytest.raises(UserError, match=match):
            find()


@pytest.mark.parametrize("etag", [None, "../../../evil"])
def test_a_server_that_is_no_hub(cache: Path, etag: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    headers = {"X-Linked-Etag": f'"{etag}"', "X-Repo-Commit": COMMIT} if etag else {}
    with serving(lambda handler, start: send(handler, b"hello", headers=headers)) as state:
        monkeypatch.setattr(constants, "ENDPOINT", state.base)
        with pytest.raises(UserError, match="is no Hugging Face hub, nor a mirror: is HF_ENDPOINT right"):
            find()
    assert not cache.exists()


def test_a_hub_that_stays_busy_is_left_soon(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was asked aloud before, and the person is not kept waiting."""
    waits: list[float] = []
    monkeypatch.setattr(hub, "BACKOFF_SECONDS", 1.0)
    monkeypatch.setattr(hub, "time", SimpleNamespace(sleep=waits.append))
    said: list[str] = []
    with serving(lambda handler, start: handler.send_error(503)) as state:
        monkeypatch.setattr(constants, "ENDPOINT", state.base)
        with pytest.raises(UserError, match="the server answers 503"):
            find(said)
    assert waits == [1.0, 2.0]
    assert said[0] == f"Asking {state.base} for {REPOSITORY}."


@pytest.mark.slow
def test_a_socket_that_never_answers_costs_less_than_ten_seconds(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the start of a process and its imports, which took 5.2 s here when cold."""
    begun = time.monotonic()
    with deaf() as base:
        monkeypatch.setattr(constants, "ENDPOINT", base)
        with pytest.raises(UserError) as caught:
            find()
    assert time.monotonic() - begun < 10 - 5.2
    for part in (base, "no answer", "HF_ENDPOINT=https://hf-mirror.com", "--weights FILE", "--weights none"):
        assert part in str(caught.value)
    assert "pitstop fetch test_resnet" in str(caught.value)


def test_offline_is_said_at_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"(?s)HF_HUB_OFFLINE is set.*--weights none"):
        find()


def test_a_dry_run_asks_nobody_and_writes_nothing(cache: Path, server: tuple[Hub, list[str]]) -> None:
    said: list[str] = []
    assert find(said, may_write=False) is None
    assert (server[1], cache.exists()) == ([], False)
    assert REPOSITORY in said[0]


def test_they_are_hashed_once(cache: Path, server: tuple[Hub, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they are found, which refuses a damaged file; then they are not read for it again."""
    find()
    monkeypatch.setattr(weights, "digest", lambda *_: pytest.fail("hashed again"))
    model = timm.create_model(MODEL)
    about = weights.bring(model, "pretrained", name=MODEL, may_write=True, say=lambda _: None)
    digest = hashlib.sha256(server[0].files["model.safetensors"]).hexdigest()
    assert about == {"weights": REPOSITORY, "sha256": digest}


def test_a_damaged_blob_is_named(cache: Path, server: object) -> None:
    found = find()
    assert found is not None
    with open(found, "r+b") as file:
        file.write(b"damaged!")
    with pytest.raises(UserError, match="is damaged or another file"):
        find()


def test_a_cache_that_cannot_be_written(cache: Path, server: object) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(UserError, match="Set HF_HOME to a folder"):
        find()


def test_weights_that_only_have_a_url(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They go where torch.hub, and so timm, looks for them."""
    data = b"weights"
    digest = hashlib.sha256(data).hexdigest()
    with serving(lambda handler, start: send(handler, data, start)) as state:
        cfg = timm.models.get_pretrained_cfg("resnet18")
        cfg.hf_hub_id, cfg.url = None, f"{state.base}/resnet18-{digest[:8]}.pth"
        monkeypatch.setattr(pretrained, "get_pretrained_cfg", lambda model: cfg)
        found = find(model="resnet18")
        assert found == tmp_path / "torch" / "hub" / "checkpoints" / f"resnet18-{digest[:8]}.pth"
        assert find(model="resnet18", may_write=False) == found
        cfg.url = f"{state.base}/resnet18-{'0' * 8}.pth"
        with pytest.raises(UserError, match="serves another file"):
            find(model="resnet18")


def test_names() -> None:
    assert pretrained.source("resnet18") == pretrained.source("resnet18.a1_in1k") == "timm/resnet18.a1_in1k"
    for model, match in (
        ("resnet19", "has no such model"),
        ("resnet18.none", r"Invalid pretrained tag.*resnet18\.a1_in1k"),
        ("resnet26t_no", "no such model"),
        ("vit_base_patch16_18x2_224", "no pretrained weights"),
    ):
        with pytest.raises(UserError, match=match):
            pretrained.source(model)


def test_normalisation() -> None:
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert pretrained.normalisation("resnet18") == imagenet
    assert pretrained.normalisation("test_resnet") == ((0.5,) * 3, (0.5,) * 3)
    assert pretrained.normalisation("a model of one's own") == imagenet
