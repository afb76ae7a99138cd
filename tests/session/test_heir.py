"""The launcher's own command is given again once that launcher has ended, in its folder and with its environment."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pitstop.launcher import Agent
from pitstop.session import heir

RANK = """
import signal
from pathlib import Path
from pitstop.session import heir
signal.signal(signal.SIGTERM, lambda *_: None)
Path("ready").touch()
print(heir.start_again(Path(".")))
"""


def launched(tmp_path: Path, name: str, **ranks: str) -> tuple[subprocess.CompletedProcess[str], Path]:
    """A program `name` that starts a rank as its child, signals its group as torchrun does (but without end), and ends;
    what the rank says, and the folder where the next writes."""
    agent, ranks = tmp_path / name, {"RANK": "0", "TORCHELASTIC_RUN_ID": "none", **ranks}
    agent.write_text(
        "import json, os, signal, subprocess, sys, time\n"
        "if os.path.exists('begun'):\n"
        "    facts = {'argv': sys.argv[1:], 'cwd': os.getcwd(), 'mark': os.environ.get('MARK'),\n"
        "             'rank': os.environ.get('RANK'), 'leads': os.getsid(0) == os.getpid(),\n"
        "             'alone': os.environ.get('PET_STANDALONE'),\n"
        "             'first': os.path.exists('/proc/' + open('begun').read() + '/fd')}\n"
        "    print(json.dumps(facts))\n"
        "    sys.exit()\n"
        "open('begun', 'w').write(str(os.getpid()))\n"
        f"env = {{**os.environ, **{ranks!r}}}\n"
        f"rank = subprocess.Popen([sys.executable, '-c', {RANK!r}], env=env, start_new_session=True)\n"
        "while rank.poll() is None:\n"
        "    if os.path.exists('ready'):\n"
        "        os.killpg(rank.pid, signal.SIGTERM)\n"
        "    time.sleep(0.0002)\n"
    )
    done = subprocess.run(
        [sys.executable, str(agent), "recipe.py", "--name", "two words"],
        cwd=tmp_path,
        env={"MARK": "as it was", "PYTHONPATH": str(Path(heir.__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done, tmp_path


@pytest.mark.parametrize("name", ["accelerate", "torchrun"])
def test_the_same_command_in_the_same_place(name: str, tmp_path: Path) -> None:
    done, folder = launched(tmp_path, name, WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    log = Path(done.stdout.strip())
    assert log.parent == folder
    deadline = time.monotonic() + 20
    while not log.read_text().strip():
        assert time.monotonic() < deadline, done.stderr
        time.sleep(0.02)
    assert json.loads(log.read_text()) == {
        "argv": ["recipe.py", "--name", "two words"],
        "cwd": str(folder),
        "mark": "as it was",
        "rank": None,
        "leads": True,
        "alone": "1",
        "first": False,
    }


def test_one_that_dies_before_it_has_a_session_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent signals the group to which it still belongs."""
    popen, started = subprocess.Popen, []

    def dies_once(*args: Any, **kwargs: Any) -> subprocess.Popen[bytes]:
        if not started:
            args, kwargs = (["/bin/sh", "-c", "kill -KILL $$"],), {}
        started.append(popen(*args, **kwargs))
        return started[-1]

    agent = Agent(1 << 30, ["echo", "here"], dict(os.environb), tmp_path, True)
    monkeypatch.setattr(heir, "agent", lambda: agent)
    monkeypatch.setattr(heir, "WAIT_TURNS", 2)
    monkeypatch.setattr(subprocess, "Popen", dies_once)
    log = heir.start_again(tmp_path)
    assert log is not None
    assert [process.wait(20) for process in started] == [-signal.SIGKILL, 0]
    assert log.read_text() == "here\n"


@pytest.mark.parametrize("zombie", ["agent", "rank"])
def test_a_dead_process_that_nobody_has_reaped_is_not_waited_for(zombie: str) -> None:
    dead = subprocess.Popen(["true"])
    while "(zombie)" not in Path(f"/proc/{dead.pid}/status").read_text():
        time.sleep(0.01)
    pids = {"agent": 1 << 30, "rank": 1 << 30} | {zombie: dead.pid}
    script = subprocess.run(
        ["/bin/sh", "-c", heir.SCRIPT, str(pids["agent"]), str(pids["rank"]), "600", "echo", "here"],
        capture_output=True,
        timeout=20,
    )
    dead.wait()
    assert script.stdout == b"here\n"


@pytest.mark.slow
def test_two_that_ask_for_one_port(tmp_path: Path) -> None:
    """The terminal of both was closed. By torchrun's own way to a free port."""
    script = tmp_path / "script.py"
    script.write_text(
        "import torch.distributed as d; d.init_process_group('gloo')\n"
        "import os; os.write(1, f\"{os.environ['MASTER_ADDR']} met {d.get_world_size()}\\n\".encode())\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port, script],
            env=os.environb | heir.FREE_PORT,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.stdout.splitlines() == ["127.0.0.1 met 2"] * 2, done.stderr


@pytest.mark.parametrize(
    ("name", "ranks"), [("accelerate", {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}), ("my-scheduler", {})]
)
def test_not_where_others_have_a_say(name: str, ranks: dict[str, str], tmp_path: Path) -> None:
    """Ranks on other machines, or a scheduler that starts again itself."""
    done, folder = launched(tmp_path, name, **ranks)
    assert done.stdout.strip() == "None", done.stderr
    assert list(folder.glob("launch-*")) == []
