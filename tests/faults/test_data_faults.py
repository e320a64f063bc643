"""A hub that fails in every way it is known to: nothing lost, nothing repeated, and one line where it stays away.

The hub is a server of ours that speaks as much of the hub's protocol as streaming needs. The stream runs in a process
of its own, since the hub's client reads its address when it is imported; there, sleeping is cut short.
"""

import gzip
import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import pytest
from small_corpus import sentences

from elas_lightning.data.sources import C4_REVISION

SHARDS = {"train": 1024, "validation": 8}


def shard_content(name: str) -> bytes:
    """Ten documents, other ones in every shard."""
    lines = [json.dumps({"text": text}) for text in sentences(name.removeprefix("c4-")[:-8], 10)]
    return gzip.compress("\n".join(lines).encode(), mtime=0)


class Hub(ThreadingHTTPServer):
    """Serves ``allenai/c4`` and a tokenizer; ``faults`` are what the next downloads meet."""

    daemon_threads = True

    def __init__(self, tokenizer: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        names = [f"c4-{split}.{i:05d}-of-{count:05d}.json.gz" for split, count in SHARDS.items() for i in range(count)]
        self.files = {f"en/{name}": shard_content(name) for name in names}
        self.tokenizer = tokenizer
        self.faults: list[str] = []
        self.met: list[str] = []
        self.always: str | None = None
        self.lock = threading.Lock()

    def next_fault(self) -> str | None:
        with self.lock:
            fault = self.always or (self.faults.pop(0) if self.faults else None)
            if fault:
                self.met.append(fault)
            return fault


class Answer(BaseHTTPRequestHandler):
    """One request."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        content = self.rfile.read(length).decode()
        if self.path == "/faults":
            plan = json.loads(content)
            self.server.faults, self.server.always = plan["next"], plan["always"]
            met, self.server.met = self.server.met, []
            return self._send(json.dumps(met).encode())
        return self._send(json.dumps(self._entries()).encode())

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if "/tree/" in path:
            return self._send(json.dumps(self._entries()).encode())
        if path.startswith("/api/"):
            return self._send(json.dumps({"id": "allenai/c4", "sha": C4_REVISION, "siblings": []}).encode())
        wanted = path.partition("/resolve/")[2].partition("/")[2]
        content = self.server.tokenizer if wanted == "tokenizer.json" else self.server.files[wanted]
        fault = self.server.next_fault()
        if fault in ("500", "429"):
            return self._send(b"not now", int(fault))
        if fault == "reset":
            self.close_connection = True
            return self.connection.close()
        if fault == "stall":
            time.sleep(3)  # beyond the client's time-out of one second
        return self._send(content, cut=fault == "cut")

    def _entries(self) -> list[dict[str, Any]]:
        return [
            {"type": "file", "oid": "0" * 40, "size": len(content), "path": path}
            for path, content in self.server.files.items()
        ]

    def _send(self, content: bytes, status: int = 200, cut: bool = False) -> None:
        whole = len(content)
        first = 0
        if status == 200 and (asked := self.headers.get("Range")):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            first, last = int(first), min(int(last or whole - 1), whole - 1)
            content, status = content[first : last + 1], 206
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", '"0123456789"')
        self.send_header("X-Repo-Commit", C4_REVISION)
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{first + len(content) - 1}/{whole}")
        self.end_headers()
        try:
            if self.command != "HEAD":
                self.wfile.write(content[: len(content) // 2] if cut else content)
        except OSError:
            pass  # the client has given up waiting
        if cut:
            self.close_connection = True


STREAM = """
import json, sys, time, urllib.request
from itertools import islice

sleep, slept = time.sleep, []
def short(seconds):
    slept.append(seconds)
    sleep(min(seconds, 0.02))
time.sleep = short

from elas_lightning.data import C4DataModule
from elas_lightning.errors import UserError

endpoint, tokenizer, cache = sys.argv[1:]

def faults(*following, always=None):
    plan = json.dumps({"next": following, "always": always}).encode()
    return json.load(urllib.request.urlopen(urllib.request.Request(endpoint + "/faults", plan)))

def stream(state=None, tokenizer=tokenizer):
    data = C4DataModule(source="c4", tokenizer=tokenizer, sequence_length=16, batch_size=3, batching="pack",
                        lanes=4, shuffle_block=7, cache_dir=cache)
    data.setup("fit")
    if state:
        data.load_state_dict(state)
    taken = list(islice(data.train_dataloader(), 41))[:40]
    return [data.on_after_batch_transfer(batch, 0)["input_ids"].tolist() for batch in taken], data.state_dict()

def refusal(**arguments):
    try:
        stream(**arguments)
    except UserError as error:
        return str(error)

result = {}
result["whole"], state = stream()
result["further"], _ = stream(state)
for name, following in {
    "cut": ["cut"] * 4,
    "500": ["500"] * 4,
    "429": ["429"] * 4,
    "reset": ["reset"] * 4,
    "stall": ["stall"] * 2,
    "all": ["cut", "500", "reset", "429", "cut", "cut", "500"],
}.items():
    faults(*following)
    batches, _ = stream()
    faults(*following)
    again, _ = stream(state)
    result[name] = [batches == result["whole"], again == result["further"], faults()]
slept.clear()
for name in ("500", "cut"):
    faults(always=name)
    result["away " + name] = [refusal(), len(faults())]
result["slept"] = slept
faults(*["500"] * 2)
result["tokenizer"] = [stream(tokenizer="google-t5/t5-base")[0] == result["whole"], faults()]
faults(always="500")
result["no tokenizer"] = refusal(tokenizer="some/model")
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def outcome(tokenizer_file, tmp_path_factory) -> Iterator[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("hub")
    hub = Hub(tokenizer_file.read_bytes())
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_DOWNLOAD_TIMEOUT": "1",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    command = [sys.executable, "-c", textwrap.dedent(STREAM), endpoint, str(tokenizer_file), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    hub.shutdown()
    hub.server_close()
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.parametrize("fault", ["cut", "500", "429", "reset", "stall", "all"])
def test_no_document_is_lost_or_repeated(outcome: dict[str, Any], fault: str) -> None:
    from_the_start, resumed, met = outcome[fault]
    assert met, "the faults must have been met"
    assert from_the_start
    assert resumed


@pytest.mark.parametrize("fault", ["500", "cut"])
def test_a_hub_that_stays_away_is_one_line(outcome: dict[str, Any], fault: str) -> None:
    message, requests = outcome[f"away {fault}"]
    assert message.startswith("cannot reach the hub for hf://datasets/allenai/c4@")
    assert "use data.source=local with downloaded shards" in message
    assert "\n" not in message
    assert requests >= 6


def test_waits_grow(outcome: dict[str, Any]) -> None:
    ours = [seconds for seconds in outcome["slept"] if isinstance(seconds, float)]  # the client's own are integers
    assert ours == [1.0, 2.0, 4.0, 8.0, 16.0] * 2


def test_the_tokenizers_download_is_tried_again(outcome: dict[str, Any]) -> None:
    same, met = outcome["tokenizer"]
    assert met == ["500", "500"]
    assert same
    assert outcome["no tokenizer"].startswith("cannot reach the hub for some/model/tokenizer.json")
    assert "give its tokenizer.json as data.tokenizer" in outcome["no tokenizer"]
