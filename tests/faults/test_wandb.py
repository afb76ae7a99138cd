"""The real W&B client against a server of our own: kills, outages, offline and online attempts, a notice.

Whatever happens, the server ends with row i of metrics.jsonl as its row i, each once. Rows are counted there.
"""

import random
import signal
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from faults.harness import Warm
from tracked import Tracked, expected, mirrored, rows_at, shown, to_show
from wandb_server import KEY, WandbServer


@pytest.mark.slow
def test_ten_kills_an_outage_and_offline_attempts(tracked: Callable[..., Tracked], server: WandbServer) -> None:
    """Online, the server away in the middle, answering 500, dropping connections; offline: mixed, killed at random.

    An attempt is killed when its client has sent something, however slow this machine is."""
    run, chance = tracked("--epochs", "45"), random.Random(7)
    grown = []
    for fault in ("", "500", "offline", "", "reset", "down", "", "offline", "", ""):
        had = len(server.run().history) if server.runs else 0
        offline = {"WANDB_MODE": "offline"} if fault == "offline" else {}
        job = run.start(STEP_SECONDS="0.2", **server.environment | offline)
        if not offline:
            rows_at(server, had + 1 + chance.randrange(8))
        if fault == "down":
            server.down()
        elif not offline:
            server.fault = fault  # it begins well and breaks
        time.sleep(0.1 + 0.7 * chance.random())
        job.kill()
        assert job.codes == [-signal.SIGKILL], job.text
        if fault == "down":
            server.up()
        server.fault = ""
        grown.append(len(server.run().history) - had)
    assert sum(map(bool, grown)) == 8, f"rows that came in each attempt: {grown}"
    run.finish(STEP_SECONDS="0", **server.environment)
    assert mirrored(server.run()) == expected(run)
    assert server.run().ends == [{"complete": True, "exitcode": 0}]
    again = run.sync(server)
    assert again.codes == [0], again.text
    assert " 0 of them new" in again.text
    assert mirrored(server.run()) == expected(run)


@pytest.mark.slow
def test_pictures_and_class_accuracies_belong_to_their_rows(warm: Warm, tmp_path: Path, server: WandbServer) -> None:
    """Killed before the first row; the next attempt sends the samples that the first has written. And the last row has
    the pictures of the end, each the very file of the run."""
    flags = ("--save_every", "2steps", "--log_every", "4", "--log_gradients", "True", "--price", "2")
    run = Tracked(warm, tmp_path / "run", *flags, PICTURES="1", **server.environment)
    run.killed("step:3")
    run.finish()
    stored = server.run()
    assert mirrored(stored) == expected(run)
    assert shown(stored) == to_show(run)
    first, last = min(to_show(run)), max(to_show(run))
    assert (first, last) == (0, len(stored.rows) - 1)
    assert {name: len(shots) for name, shots in shown(stored)[first].items()} == {"train/augmented": 16}
    names = {"eval/predictions"} | ({"eval/confusion_matrix"} if find_spec("matplotlib") else set())
    assert shown(stored)[last].keys() == names
    assert any(", taken for " in caption for _, caption in shown(stored)[last]["eval/predictions"])
    assert {"train/cost", "train/goodput", "train/grad_norm"} < stored.rows[0].keys()
    assert "eval/class_accuracy/7" in stored.rows[last]


@pytest.mark.slow
def test_a_notice_writes_checkpoint_and_status_before_a_server_that_hangs(
    tracked: Callable[..., Tracked], server: WandbServer, tmp_path: Path
) -> None:
    """And with one that answers: preempted, with a non-zero exit code. And nobody's keys were sent."""
    keys = {"AWS_ACCESS_KEY_ID": "CANARY-id", "AWS_SECRET_ACCESS_KEY": "CANARY-secret"}
    store = {"PITSTOP_STORE": f"file://{tmp_path}/CANARY-store", "PITSTOP_GRACE_SECONDS": "6"}
    run = tracked("--epochs", "90", **server.environment | keys | store)
    job = run.start()
    rows_at(server, 3)
    server.fault = "hang"
    job.signal(signal.SIGTERM)
    asked = time.monotonic()
    while run.status()["state"] != "stopped":
        assert time.monotonic() - asked < 2
        time.sleep(0.02)
    assert job.wait().codes == [75]
    assert time.monotonic() - asked < 6
    assert "W&B has not taken everything in time" in job.text
    server.fault = ""
    job = run.start()
    rows_at(server, len(server.run().history) + 3)
    job.signal(signal.SIGTERM)
    assert job.wait().codes == [75]
    assert server.run().ends == [{"preempting": True}, {"complete": True, "exitcode": 75}]
    assert mirrored(server.run()) == expected(run)
    sent = b"".join(server.received)
    assert b"CANARY" not in sent
    assert KEY.encode() not in sent
