"""Asked to stop by a clock, a bill, a file, a cloud: the same step on all ranks, in time, the same bytes afterwards."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from faults.harness import Job, Run, assert_same
from faults.holding import held, steps, stopped, until

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "notice"))
from metadata_server import IDLE, ITEM, REBALANCE, MetadataServer, due

SLOW = {"STEP_SECONDS": "0.1"}
WRITTEN_WORDS = {"aws": "AWS takes this instance (terminate)", "gcp": "Google Cloud preempts this instance"}
TAKEN_SECONDS = {"aws": 100, "gcp": 30}


def test_max_hours(tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    """Of the attempt: the next one has as long again."""
    run = tiny()
    job = run.go("--max_hours", "0.0005", STEP_SECONDS="0.2")
    assert job.codes == [75], job.text
    status = stopped(run, "now")
    assert status["reason"] == "--max_hours 0.0005 are over"
    assert 0 < status["step"] < 26
    assert f"step-{status['step']:08d}" in run.checkpoints()
    run.finish()
    assert [event["step"] for event in run.events("restore")] == [status["step"]]
    assert_same(run, clean())


def test_max_hours_of_three_ranks(tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    run = tiny(ranks=3)
    job = run.go("--max_hours", "0.0005", **SLOW)
    assert set(job.codes) == {75}, job.text
    check_stopped_together(run, 3)
    run.finish()
    assert_same(run, clean(ranks=3))


def check_stopped_together(run: Run, ranks: int) -> None:
    """By what each rank has computed, not by what the run says."""
    last = {rank: max(row["step"] for row in run.step_log() if row["rank"] == rank) for rank in range(ranks)}
    assert set(last.values()) == {run.status()["step"] - 1}, last
    assert run.status()["step"] < 26, "they did not stop"


def test_budget(tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    """At 3600 an hour a second costs 1: what is spent is known at each save. Then only a larger budget goes on."""
    run = tiny("--save_every", "1steps", "--price", "3600")
    job = run.go("--budget", "3", STEP_SECONDS="0.2")
    assert job.codes == [76], job.text
    status = stopped(run, "person")
    assert "the budget of 3 CNY is spent" in status["reason"]
    assert 0 < status["step"] < 26
    assert status["cost"] == pytest.approx(status["paid_seconds"], abs=0.06)
    assert 3 <= status["cost"] < 6
    done = steps(run)
    again = run.go("--budget", "3", KILL_AT="prepared")
    assert again.codes == [76], again.text
    assert "the budget of 3 CNY is spent" in again.text
    assert "a larger --budget" in again.text
    assert "Traceback" not in again.text
    assert steps(run) == done
    stopped(run, "person")
    run.finish("--budget", "1000")
    assert run.status()["cost"] > status["cost"]
    assert_same(run, clean())


def test_a_budget_that_its_start_has_spent(tiny: Callable[..., Run]) -> None:
    run = tiny()
    job = run.go("--budget", "0.000001", "--price", "100")
    assert job.codes == [76], job.text
    assert steps(run) == 0
    stopped(run, "person")


def test_stop_file(tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    run = tiny()
    job = run.start(**SLOW)
    until(lambda: steps(run) > 2, job)
    (run.path / "STOP").touch()
    assert job.wait().codes == [76], job.text
    status = stopped(run, "person")
    assert "STOP is there" in status["reason"]
    assert f"step-{status['step']:08d}" in run.checkpoints()
    assert status["step"] < 26
    assert not (run.path / "STOP").exists(), "it was obeyed, and the next start would be refused"
    run.finish()
    assert_same(run, clean())


def test_stop_file_before_the_start(tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    """Nothing is loaded; it is removed, and the next start goes on."""
    run = tiny("--save_every", "5steps")
    run.killed("step:8")
    (run.path / "STOP").touch()
    job = run.go(KILL_AT="prepared")
    assert job.codes == [76], job.text
    assert "STOP" in job.text
    assert not (run.path / "STOP").exists()
    stopped(run, "person")
    run.finish()
    assert_same(run, clean())


@pytest.fixture(params=["gcp"])
def cloud(request: pytest.FixtureRequest) -> Iterator[MetadataServer]:
    with MetadataServer(request.param) as server:
        yield server


def asks(server: MetadataServer) -> dict[str, str]:
    return {"PITSTOP_METADATA_URL": server.url}


def take(server: MetadataServer) -> float:
    """The cloud says that it takes the machine. Returns when, on the monotonic clock, it will be gone."""
    seconds = TAKEN_SECONDS[server.cloud]
    server.answers[ITEM[server.cloud]] = (
        200,
        due(server.cloud, datetime.now(timezone.utc) + timedelta(seconds=seconds)),
    )
    return time.monotonic() + seconds


def told(server: MetadataServer, job: Job) -> None:
    """Waits until the run has asked, and had the time to understand."""
    before = server.asked(ITEM[server.cloud])
    until(lambda: server.asked(ITEM[server.cloud]) > before + 1, job)


def leave(server: MetadataServer) -> None:
    """Another machine, that nobody takes."""
    server.answers[ITEM[server.cloud]] = IDLE.get(server.cloud, (404, "not found"))


@pytest.mark.parametrize("cloud", ["aws", "gcp"], indirect=True)
def test_a_notice(cloud: MetadataServer, tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    run = tiny("--cloud", cloud.cloud)
    job = run.start(STEP_SECONDS="0.4", **asks(cloud))
    until(lambda: steps(run) > 2, job)
    gone = take(cloud)
    job.wait()
    assert time.monotonic() < gone
    assert job.codes == [75], job.text
    status = stopped(run, "now")
    assert status["reason"] == WRITTEN_WORDS[cloud.cloud]
    assert f"step-{status['step']:08d}" in run.checkpoints()
    leave(cloud)
    run.finish(**asks(cloud))
    assert_same(run, clean())


def test_a_notice_stops_three_ranks_at_the_same_step(
    cloud: MetadataServer, tiny: Callable[..., Run], clean: Callable[..., Run]
) -> None:
    run = tiny("--cloud", cloud.cloud, ranks=3)
    job = run.start(STEP_SECONDS="0.2", **asks(cloud))
    until(lambda: steps(run) > 5, job)
    gone = take(cloud)
    job.wait()
    assert time.monotonic() < gone
    assert set(job.codes) == {75}, job.text
    check_stopped_together(run, 3)
    assert stopped(run, "now")["reason"] == WRITTEN_WORDS["gcp"]
    leave(cloud)
    run.finish(**asks(cloud))
    assert_same(run, clean(ranks=3))


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_notice_during_an_evaluation(
    ranks: int, cloud: MetadataServer, tiny: Callable[..., Run], clean: Callable[..., Run]
) -> None:
    """The run leaves between two batches of it, at the step where it stood: the evaluation is done anew."""
    run = tiny("--cloud", cloud.cloud, ranks=ranks)
    with held(run, "eval:9", **asks(cloud)) as job:
        take(cloud)
        told(cloud, job)
    assert set(job.wait().codes) == {75}, job.text
    assert stopped(run, "now")["step"] == 9
    assert "step-00000009" in run.checkpoints()
    assert [row for row in run.rows() if row["kind"] == "eval"] == []
    leave(cloud)
    run.finish(**asks(cloud))
    assert_same(run, clean(ranks=ranks))


def test_a_notice_during_a_save(cloud: MetadataServer, tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    """That save is ended, one of the step where the run stops comes after it."""
    run = tiny("--cloud", cloud.cloud, "--save_every", "5steps")
    with held(run, "saving:5", STEP_SECONDS="0.3", **asks(cloud)) as job:
        take(cloud)
        told(cloud, job)
        assert not job.over.wait(0.5), "it did not wait for the save"
    assert job.wait().codes == [75], job.text
    status = stopped(run, "now")
    assert 5 < status["step"] < 26
    assert run.checkpoints() == ["step-00000005", f"step-{status['step']:08d}"]
    leave(cloud)
    run.finish(**asks(cloud))
    assert_same(run, clean())


def test_a_notice_before_the_first_step(
    cloud: MetadataServer, tiny: Callable[..., Run], clean: Callable[..., Run]
) -> None:
    """There is nothing to save: it leaves at once, and no step is paid for."""
    run = tiny("--cloud", cloud.cloud)
    with held(run, "restored", **asks(cloud)) as job:
        take(cloud)
        until(lambda: job.over.is_set(), job)
    assert job.wait().codes == [75], job.text
    assert steps(run) == 0
    leave(cloud)
    run.finish(**asks(cloud))
    assert_same(run, clean())


def test_a_notice_before_the_first_step_of_three_ranks(
    cloud: MetadataServer, tiny: Callable[..., Run], clean: Callable[..., Run]
) -> None:
    """Whom nobody tells anything lose their connection to rank 0, which has left: then it is for the launcher."""
    run = tiny("--cloud", cloud.cloud, ranks=3)
    take(cloud)
    job = run.go(**asks(cloud))
    assert job.codes[0] == 75, job.text
    assert steps(run) == 0
    leave(cloud)
    run.finish(**asks(cloud))
    assert_same(run, clean(ranks=3))


def test_a_warning_of_aws_saves_and_goes_on(tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    """A rebalance recommendation is no end: a save soon, once, and the run goes on to the end."""
    with MetadataServer("aws") as server:
        server.answers[REBALANCE] = (200, '{"noticeTime": "2026-10-27T08:22:00Z"}')
        run = tiny("--cloud", "aws", "--save_every", "1000steps")
        run.finish(STEP_SECONDS="0.05", **asks(server))
    saved = [event["step"] for event in run.events("save")]
    assert len(saved) == 2, saved
    assert saved[0] < 26
    assert saved[1] == 26
    assert_same(run, clean())


def test_what_is_no_notice_changes_nothing(
    cloud: MetadataServer, tiny: Callable[..., Run], clean: Callable[..., Run]
) -> None:
    """More of such answers: tests/notice/test_watch.py."""
    cloud.answers[ITEM["gcp"]] = (200, "<html>please log in</html>")
    run = tiny("--cloud", "gcp")
    run.finish(STEP_SECONDS="0.05", **asks(cloud))
    assert cloud.asked(ITEM["gcp"]) > 1
    assert_same(run, clean())


def test_no_environment_leaks() -> None:
    """These tests mean what they say only if nothing of the person's own is in force."""
    assert "PITSTOP_METADATA_URL" not in os.environ
