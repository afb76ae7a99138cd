"""Two processes, one run: the second leaves, names the first, and touches nothing."""

import signal
from collections.abc import Callable

from faults.harness import Job, Run, assert_same, snapshot


def under_way(run: Run) -> Job:
    job = run.start(STEP_SECONDS="0.3")
    while len(run.step_log()) < 2:
        assert not job.over.wait(0.01), job.text
    return job


def test_the_second_leaves(tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    run = tiny()
    first = under_way(run)
    first.signal(signal.SIGSTOP)  # so that it changes nothing meanwhile
    before = snapshot(run.path)
    second = run.go(LOCK_WAIT="0.5")
    after = snapshot(run.path)
    first.signal(signal.SIGCONT)
    assert second.codes == [75], second.text
    assert f"pid {first.pids[0]} " in second.text
    assert "Traceback" not in second.text
    assert after == before
    first.kill()
    run.finish()
    assert_same(run, clean())


def test_a_restart_that_came_too_early_waits(tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    run = tiny()
    first = under_way(run)
    second = run.start()
    assert not second.over.wait(0.5), second.text
    first.kill()
    assert second.wait().codes == [0], second.text
    assert_same(run, clean())


def test_two_at_once_on_a_new_run(tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    """Neither has made the directory yet."""
    run = tiny(STEP_SECONDS="0.05")
    jobs = [run.start(LOCK_WAIT="0.1") for _ in range(2)]
    assert sorted(job.wait().code for job in jobs) == [0, 75], [job.text for job in jobs]
    assert_same(run, clean())
