"""Weights: the table and its overrides, and downloads from a server that does everything wrong."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stages.core.errors import ConfigError, EnvironmentFault, MissingInputError
from stages.core.weights import download
from stages.core.weights.cache import cache_folder, cached, cached_weights, file_path
from stages.core.weights.checks import looks_like_markup
from stages.core.weights.download import fetch
from stages.core.weights.table import (
    EMBEDDED,
    PUBLISHED,
    SHIPPED,
    Weights,
    find_weights,
    segmenter_kind,
    weights_table,
)
from tests.weights_server import Resource, Server, serving, serving_hub
from weaksam_cli import main as entry_point

CONTENT = bytes(range(256)) * 40
PAGE = b"<!DOCTYPE html><html><body>Please log in</body></html>"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def server() -> Iterator[Server]:
    with serving({"sam.pth": Resource(CONTENT)}) as running:
        yield running


def line(server: Server, file: str = "sam.pth", content: bytes = CONTENT, **changes: Any) -> Weights:
    fields: dict[str, Any] = {
        "url": f"{server.url}/{file}",
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    return Weights("test-sam", **{**fields, **changes})


def unfinished() -> list[Path]:
    """Parts of downloads in the cache."""
    return list((cache_folder() / "weights").glob("*.part"))


def test_published__complete_and_consistent() -> None:
    assert len({entry.name for entry in PUBLISHED}) == len(PUBLISHED)
    for entry in PUBLISHED:
        assert bool(entry.url) != bool(entry.hub), entry.name
        assert entry.size
        assert entry.licence == "Apache-2.0"
        if entry.url:
            assert entry.url.startswith("https://dl.fbaipublicfiles.com/segment_anything/")
            assert len(bytes.fromhex(entry.sha256)) == 32
            assert entry.file_name.endswith(f"_{entry.md5_prefix}.pth"), (
                "the digits in the name are of the MD5"
            )


def test_weights_table__mirror_replaces_the_folder_of_every_file() -> None:
    table = weights_table({"WEAKSAM_WEIGHTS_URL": "http://mirror.example/sam/"})
    assert table["sam-vit-h"].url == "http://mirror.example/sam/sam_vit_h_4b8939.pth"
    assert table["sam-vit-h"].sha256, "a mirror has to hold the same bytes"
    assert table["edgetam"].hub


def test_weights_table__user_file_adds_and_overrides(tmp_path: Path) -> None:
    own = tmp_path / "weights.yaml"
    own.write_text(
        "mine: {url: 'http://x.example/a/mine.pth', architecture: sam-vit-b, licence: CC-BY-4.0}\n"
        "sam-vit-b: {url: 'http://x.example/b.pth', size: 12}\n"
        "edgetam: {hub: me/edge, revision: abc}\n"
    )
    environ = {"WEAKSAM_WEIGHTS": str(own), "WEAKSAM_WEIGHTS_URL": "http://mirror.example"}
    table = weights_table(environ)
    assert (table["mine"].file_name, table["mine"].kind) == ("mine.pth", "sam-vit-b")
    assert (table["sam-vit-b"].url, table["sam-vit-b"].size) == ("http://x.example/b.pth", 12)
    assert (table["edgetam"].hub, table["edgetam"].revision) == ("me/edge", "abc")
    assert table["sam-vit-l"].url.startswith("http://mirror.example/")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mine: {urll: 'http://x/y'}", "unknown field 'urll'.*\n.*did you mean 'url'"),
        ("mine: {licence: MIT}", "give either url or hub"),
        ("mine: {url: 'http://x/y', hub: a/b}", "give either url or hub"),
        ("mine: {url: 'file:///etc/passwd'}", "not the http"),
        ("mine: {url: 'http://x/y', size: big}", "size must be a number"),
        ("- a list", "expected a mapping"),
        ("mine: [", "not valid YAML"),
    ],
)
def test_weights_table__refuses_a_wrong_user_file(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "weights.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        weights_table({"WEAKSAM_WEIGHTS": str(tmp_path / "weights.yaml")})


def test_weights_table__absent_user_file(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="WEAKSAM_WEIGHTS"):
        weights_table({"WEAKSAM_WEIGHTS": str(tmp_path / "no.yaml")})


def test_find_weights__close_matches() -> None:
    with pytest.raises(ConfigError, match="did you mean 'sam-vit-b'"):
        find_weights("sam-vitb")


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (PAGE, True),
        (b"\xef\xbb\xbf  \n<html>", True),
        (b"PK\x03\x04<html>", False),
        (b"\x80\x02}", False),
        (b"", False),
    ],
)
def test_looks_like_markup__first_bytes(head: bytes, expected: bool) -> None:
    assert looks_like_markup(head) is expected


def test_cache_folder__variable_then_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder({"WEAKSAM_CACHE": "/a/b"}) == Path("/a/b")
    monkeypatch.setattr("sys.platform", "linux")
    assert cache_folder({"XDG_CACHE_HOME": "/c"}) == Path("/c/weaksam")


def test_fetch__good_file_is_fetched_once(server: Server) -> None:
    entry = line(server)
    told: list[tuple[int, int | None]] = []
    first = fetch(entry, progress=lambda done, total: told.append((done, total)))
    assert first.fetched
    assert first.path.read_bytes() == CONTENT
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert cached(entry) == first.path
    again = fetch(entry)
    assert (again.path, again.fetched) == (first.path, False)
    assert len(server.ranges) == 1
    assert fetch(entry, force=True).fetched
    assert {p.name for p in first.path.parent.iterdir()} <= {"sam.pth", "sam.pth.lock"}


def test_fetch__dies_half_way_and_goes_on(server: Server) -> None:
    server.resources["sam.pth"].dies_after = [3000, 500]
    assert fetch(line(server), pause=0.0).path.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=3000-", "bytes=3500-"]


def test_fetch__a_later_call_goes_on_where_an_earlier_one_gave_up(server: Server) -> None:
    server.resources["sam.pth"].dies_after = [3000, 0, 0, 0, 0]
    with pytest.raises(EnvironmentFault, match=r"ends before the file does.*kept") as caught:
        fetch(line(server), pause=0.0)
    assert "goes on where it stopped" in (caught.value.hint or "")
    assert cached(line(server)) is None, "half a file must not take the name"
    assert len(unfinished()) == 1
    server.resources["sam.pth"].dies_after = []
    server.ranges.clear()
    assert fetch(line(server)).path.read_bytes() == CONTENT
    assert server.ranges == ["bytes=3000-"]


@pytest.mark.parametrize("change", ["changed", "no range", "no validator"])
def test_fetch__does_not_append_to_another_file(server: Server, change: str) -> None:
    resource = server.resources["sam.pth"]
    if change == "no validator":
        resource.etag = ""
    resource.dies_after = [3000, 0, 0, 0, 0]
    with pytest.raises(EnvironmentFault):
        fetch(line(server), pause=0.0)
    resource.dies_after = []
    other = bytes(reversed(CONTENT))
    if change == "changed":
        resource.content, resource.etag = other, '"v2"'
    elif change == "no range":
        resource.resumes = False
    expected = resource.content
    assert fetch(line(server, content=expected)).path.read_bytes() == expected


def test_fetch__part_as_long_as_the_file_starts_from_scratch(server: Server) -> None:
    entry = line(server)
    part = file_path(entry).with_name("sam.pth.part")
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * len(CONTENT))
    part.with_name("sam.pth.part.json").write_text(json.dumps({"url": entry.url, "validator": '"v1"'}))
    assert fetch(entry, pause=0.0).path.read_bytes() == CONTENT


WRONG: list[Any] = [
    pytest.param(Resource(CONTENT[:5000]), {}, "truncated: 5,000 bytes, 10,240 expected", id="truncated"),
    pytest.param(Resource(PAGE, "text/html"), {}, "a web page came instead", id="page"),
    pytest.param(Resource(PAGE + CONTENT), {"size": None, "sha256": ""}, "a web page came instead", id="disguised"),
    pytest.param(Resource(CONTENT[::-1]), {}, "wrong checksum: SHA-256", id="hash"),
    pytest.param(Resource(CONTENT), {"sha256": "", "md5_prefix": "000000"}, "wrong checksum: MD5", id="prefix"),
    pytest.param(Resource(CONTENT + b"x"), {}, "too long", id="long"),
]  # fmt: skip


@pytest.mark.parametrize(("resource", "changes", "message"), WRONG)
def test_fetch__keeps_nothing_wrong(
    server: Server, resource: Resource, changes: dict[str, Any], message: str
) -> None:
    server.resources["sam.pth"] = resource
    with pytest.raises(EnvironmentFault, match=message):
        fetch(line(server, **changes), pause=0.0)
    assert cached(line(server)) is None
    assert unfinished() == []
    assert len(server.ranges) == 1, "trying again would bring the same"


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (403, 1), (503, 4)])
def test_fetch__http_errors(server: Server, status: int, requests: int) -> None:
    server.resources["sam.pth"].status = status
    with pytest.raises(EnvironmentFault, match=f"HTTP {status}"):
        fetch(line(server), pause=0.0)
    assert len(server.ranges) == requests


def test_fetch__server_that_never_ends(server: Server) -> None:
    server.resources["sam.pth"].endless = True
    with pytest.raises(EnvironmentFault, match="too long"):
        fetch(line(server), pause=0.0)
    assert not list(file_path(line(server)).parent.glob("*.part")), "nothing of it is kept"


def test_fetch__server_that_drips(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.resources["sam.pth"].drips = 0.01
    monkeypatch.setattr(download, "TIMEOUT", 0.1)
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    with pytest.raises(EnvironmentFault, match="bytes per second"):
        fetch(line(server), pause=0.0)


def test_fetch__nobody_listens() -> None:
    with serving({}) as gone:
        pass
    with pytest.raises(EnvironmentFault, match=r"cannot be fetched.*refused"):
        fetch(line(gone), pause=0.0)


@pytest.mark.parametrize("how", ["flag", "variable"])
def test_fetch__offline(server: Server, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "variable":
        monkeypatch.setenv("WEAKSAM_OFFLINE", "1")
    with pytest.raises(EnvironmentFault, match="not there, and the network is not to be used"):
        fetch(line(server), no_network=how == "flag")
    assert server.ranges == []


def test_fetch__hub_offline_names_the_repository() -> None:
    with pytest.raises(EnvironmentFault, match=r"facebook/sam2.1-hiera-tiny"):
        fetch(find_weights("sam2.1-hiera-tiny"))


def test_fetch__unwritable_cache(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WEAKSAM_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(EnvironmentFault, match=r"cannot be written.*\n.*WEAKSAM_CACHE"):
        fetch(line(server))


def test_fetch__two_at_once_fetch_once(server: Server) -> None:
    found: list[bool] = []
    threads = [threading.Thread(target=lambda: found.append(fetch(line(server)).fetched)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [False, False, False, True]
    assert len(server.ranges) == 1


def test_cached_weights__names_the_command() -> None:
    with pytest.raises(EnvironmentFault, match="weaksam weights get sam-vit-b"):
        cached_weights("sam-vit-b")


def command(*words: str) -> int:
    with pytest.raises(SystemExit) as caught:
        entry_point.main(["weights", *words])
    return int(caught.value.code or 0)


def test_weights_command__get_path_and_offline(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "weights.yaml"
    sha = hashlib.sha256(CONTENT).hexdigest()
    own.write_text(
        f"sam-vit-b: {{url: '{server.url}/sam.pth', size: {len(CONTENT)}, sha256: {sha}, md5_prefix: ''}}\n"
    )
    monkeypatch.setenv("WEAKSAM_WEIGHTS", str(own))
    assert command("path", "sam-vit-b") == 5
    assert command("get", "sam-vit-b", "--offline") == 5
    assert command("get", "sam-vit-b") == 0
    capsys.readouterr()
    assert command("path", "sam-vit-b") == 0
    path = Path(capsys.readouterr().out.strip())
    assert path.read_bytes() == CONTENT
    assert command("get", "sam-vit-b", "--offline") == 0
    assert command("verify", "sam-vit-b") == 3, "the bytes are those of the table, but no checkpoint"
    assert "damaged checkpoint" in capsys.readouterr().err
    path.write_bytes(CONTENT[:-1])
    assert command("verify", "sam-vit-b") == 3
    assert "truncated" in capsys.readouterr().err
    assert command("list", "--json") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["sam-vit-b"]["path"] == str(path)
    assert rows["sam-vit-l"]["path"] is None
    assert command("get", "sam-vit-x") == 2


def hub_command(tmp_path: Path, endpoint: str, *words: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own: the hub's library reads its variables when it is imported."""
    environment = os.environ | {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "0",
    }
    command = [sys.executable, "-m", "weaksam_cli", "weights", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_weights_command__hub_model_is_fetched_found_and_needs_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        "config.json": b"{}",
        "model.safetensors": CONTENT,
        "model.bin": b"pickle",
        "README.md": b"hello",
    }
    (tmp_path / "own.yaml").write_text("mine: {hub: me/edge, architecture: edgetam}\n")
    monkeypatch.setenv("WEAKSAM_WEIGHTS", str(tmp_path / "own.yaml"))
    with serving_hub("me/edge", files) as endpoint:
        fetched = hub_command(tmp_path, endpoint, "get", "mine")
    assert fetched.returncode == 0, fetched.stderr
    assert fetched.stderr == "", "no bars in a log"
    found = hub_command(tmp_path, endpoint, "path", "mine")  # the server is gone
    folder = Path(found.stdout.strip())
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    (folder / "model.safetensors").unlink()
    missing = hub_command(tmp_path, endpoint, "path", "mine")
    assert (missing.returncode, "weaksam weights get mine" in missing.stderr) == (5, True)


@pytest.mark.parametrize("words", [["--help"], ["path", "sam-vit-b"], ["get", "sam-vit-b", "--offline"]])
def test_weights_command__imports_nothing_heavy(words: list[str]) -> None:
    program = (
        f"import sys\nfrom weaksam_cli.main import main\ntry:\n    main(['weights', *{words!r}])\n"
        "except SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'cv2', 'h5py', 'timm', 'transformers') if m in sys.modules], file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stderr.strip().splitlines()[-1] == "[]"


def test_shipped__are_there_and_need_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEAKSAM_OFFLINE", "1")
    for entry in SHIPPED:
        found = fetch(entry, force=True)
        assert not found.fetched
        assert found.path == cached_weights(entry.name) == EMBEDDED / entry.shipped
        assert found.path.stat().st_size <= 16 * 2**20
        assert segmenter_kind(entry.name) == "sam-nano"


def test_weights_table__own_weights_take_the_place_of_shipped_ones(tmp_path: Path) -> None:
    path = tmp_path / "weights.yaml"
    path.write_text("sam-nano: {url: 'https://example.org/nano.safetensors'}")
    entry = weights_table({"WEAKSAM_WEIGHTS": str(path)})["sam-nano"]
    assert (entry.shipped, entry.url) == ("", "https://example.org/nano.safetensors")
