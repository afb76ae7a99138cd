"""`pitstop launch`, or `accelerate launch` alone, around a real recipe. Slow: each attempt imports torch."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults.harness import TINY, Run, assert_same
from faults.warm import free_port
from supervise.fakes import survivors, until

from pitstop.supervise.program import SIMPLE_LAUNCHER

pytestmark = pytest.mark.slow
SECONDS = 90


PITSTOP = ("-m", "pitstop.cli", "launch")
ACCELERATE = ("-m", "accelerate.commands.accelerate_cli", "launch")


class Launched:
    """A program under a launcher, in a group of its own, with a mark in the environment of everything that it starts.
    The words `before` start the launcher. With HOLD_AT the program waits there for `go_on` (see tests/tiny.py)."""

    def __init__(
        self,
        folder: Path,
        *flags: str,
        launcher: tuple[str, ...] = PITSTOP,
        before: tuple[str, ...] = (),
        program: Path = TINY,
        words: tuple[str, ...] = (),
        **env: str,
    ) -> None:
        self.mark, self.out = f"mark-{uuid.uuid4()}", folder / "launch.txt"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PITSTOP_", "WANDB_", "ACCELERATE_"))}
        kept |= {"CUDA_VISIBLE_DEVICES": "", "TEST_MARK": self.mark, "STEP_LOG": str(folder / "steps.jsonl")}
        kept |= {"LOCAL_WORLD_SIZE": str(os.cpu_count())}  # one thread, as the clean run; torchrun sets it anew
        self.hold = folder / f"hold-{self.mark}"
        argv = [*before, sys.executable, *launcher, *flags, str(program), *words]
        env = kept | {"HOLD": str(self.hold)} | env
        with open(self.out, "ab") as out:
            self.process = subprocess.Popen(
                argv, cwd=folder, env=env, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True
            )

    @property
    def text(self) -> str:
        return self.out.read_text(errors="replace")

    def until(self, condition: Callable[[], object]) -> None:
        until(lambda: condition() or self.process.poll() is not None, self.text, SECONDS)
        assert self.process.poll() is None, self.text

    def held(self) -> None:
        """Waits until the program stands at HOLD_AT."""
        self.until(Path(f"{self.hold}.held").exists)

    def understood(self, times: int = 1) -> None:
        """Waits until the signal has reached so many processes of the program, and lets it go on."""
        self.until(lambda: self.text.count("saving after this step") >= times)
        Path(f"{self.hold}.go").touch()

    def end(self, seconds: float = SECONDS) -> int:
        """Its exit code; nothing that it started may be left."""
        code = self.process.wait(seconds)
        assert survivors(self.mark) == {}, self.text
        return code

    def pids(self, word: str) -> list[int]:
        return sorted(pid for pid, words in survivors(self.mark).items() if word in words.split())


@pytest.fixture
def launch(tiny: Callable[..., Run]) -> Iterator[Callable[..., Launched]]:
    made: list[Launched] = []

    def start(folder: Path, *flags: str, **options: object) -> Launched:
        made.append(Launched(folder, *flags, **options))
        return made[-1]

    yield start
    for one in made:
        for pid in survivors(one.mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        one.process.wait()


def words(*more: str) -> dict[str, tuple[str, ...]]:
    return {"words": ("--name", "r", "--tracker", "none", "--precision", "fp32", *more)}


def steps(run: Run) -> int:
    return len(run.step_log())


def test_a_signal_then_the_same_command_then_once_more(
    launch: Callable[..., Launched], tiny: Callable[..., Run], clean: Callable[..., Run]
) -> None:
    """To the launcher's group, twice, with the workers of a DataLoader."""
    run = tiny()
    one = launch(run.folder, HOLD_AT="step:4", WORKERS="2", **words())
    one.held()
    for _ in range(2):
        os.killpg(one.process.pid, signal.SIGTERM)
    one.understood()
    assert one.end() == 75, one.text
    check_stopped(run, at_step=4)
    assert launch(run.folder, **words()).end() == 0
    assert_same(run, clean())
    assert run.go().codes == [0], "a finished run is finished"


def test_the_word_of_the_recipe_stands(launch: Callable[..., Launched], tiny: Callable[..., Run]) -> None:
    """Also where the report, which the finished recipe starts, is refused its flags: that has none to tell."""
    run = tiny()
    (run.folder / "file").touch()
    how = words("--runs_dir", "runs", "--epochs", "0.2")
    one = launch(run.folder, PITSTOP_RUNS_DIR=str(run.folder / "file"), **how)
    assert one.end() == 0, one.text
    assert "no report was made" in one.text, "nothing was refused"


def check_stopped(run: Run, at_step: int) -> None:
    status = run.status()
    assert (status["state"], status["restart"], status["step"]) == ("stopped", "now", at_step)
    assert run.checkpoints() == [f"step-{at_step:08d}"]


def test_as_pid_1_of_a_container(
    launch: Callable[..., Launched], tiny: Callable[..., Run], clean: Callable[..., Run]
) -> None:
    """The kernel spares PID 1 every signal that it does not handle, and ends all others with it."""
    before = ("unshare", "-pf", "--mount-proc")
    if subprocess.run([*before, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no rights for a pid namespace")
    run = tiny()
    one = launch(run.folder, before=before, HOLD_AT="step:4", WORKERS="2", **words())
    one.held()
    first = min(pid for pid in one.pids("pitstop.cli") if b"unshare" not in Path(f"/proc/{pid}/cmdline").read_bytes())
    assert Path(f"/proc/{first}/status").read_text().split("NSpid:")[1].split()[:2] == [str(first), "1"]
    for _ in range(2):
        os.kill(first, signal.SIGTERM)
    one.understood()
    assert one.end() == 75, one.text
    check_stopped(run, at_step=4)
    run.finish()
    assert_same(run, clean())


def test_accelerate_launch_with_ranks_and_their_workers(
    launch: Callable[..., Launched], tiny: Callable[..., Run], clean: Callable[..., Run]
) -> None:
    """To its group, twice. Its own exit code is 1 whatever the ranks say, so the word is in status.json."""
    run = tiny(ranks=2)
    flags = ("--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port", str(free_port()))
    env = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    one = launch(run.folder, *flags, launcher=ACCELERATE, HOLD_AT="step:4", WORKERS="1", **env, **words())
    one.held()
    for _ in range(2):
        os.killpg(one.process.pid, signal.SIGTERM)
    one.understood()
    one.process.wait(SECONDS)
    until(lambda: survivors(one.mark) == {}, one.text, 15)
    check_stopped(run, check_together(run))
    run.finish()
    assert_same(run, clean(ranks=2))


def check_together(run: Run) -> int:
    """The step at which all ranks stand, by what each has computed."""
    last = {rank: max(row["step"] for row in run.step_log() if row["rank"] == rank) for rank in range(run.ranks)}
    assert len(set(last.values())) == 1, last
    return int(last[0]) + 1


def test_killed_recipes_are_started_again(
    launch: Callable[..., Launched], tiny: Callable[..., Run], clean: Callable[..., Run]
) -> None:
    run = tiny()
    one = launch(run.folder, **words("--save_every", "2steps"), STEP_SECONDS="0.1")
    one.until(lambda: steps(run) >= 5)
    os.kill(one.pids(str(TINY))[-1], signal.SIGKILL)
    assert one.end() == 0, one.text
    assert "out of memory?" in one.text
    assert len(run.events("attempt")) == 2
    assert_same(run, clean())


def test_a_killed_supervisor_leaves_a_checkpoint_behind(
    launch: Callable[..., Launched], tiny: Callable[..., Run]
) -> None:
    run = tiny()
    one = launch(run.folder, STEP_SECONDS="0.1", **words("--epochs", "30"))
    one.until(lambda: steps(run) >= 3)
    one.process.kill()
    one.process.wait()
    until(lambda: not survivors(one.mark), "the recipe's end", 30)
    status = run.status()
    assert (status["state"], status["restart"]) == ("stopped", "now")
    assert run.checkpoints() == [f"step-{status['step']:08d}"]


def test_three_ranks_stop_at_the_same_step(
    launch: Callable[..., Launched], tiny: Callable[..., Run], clean: Callable[..., Run]
) -> None:
    run = tiny(ranks=3)
    one = launch(run.folder, "--processes", "3", HOLD_AT="step:4", WORKERS="1", **words())
    one.held()
    one.process.send_signal(signal.SIGTERM)
    one.understood()
    assert one.end() == 75, one.text
    check_stopped(run, check_together(run))
    run.finish()
    assert_same(run, clean(ranks=3))


def test_a_rank_that_hangs_does_not_outlive_the_grace(
    launch: Callable[..., Launched], tiny: Callable[..., Run]
) -> None:
    run = tiny(ranks=2)
    one = launch(run.folder, "--processes", "2", "--grace", "4s", STEP_SECONDS="0.1", **words("--epochs", "30"))
    one.until(lambda: steps(run) >= 6)
    ranks = [pid for pid in one.pids(str(TINY)) if b"\0-m\0" not in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(ranks) == 2
    os.kill(ranks[-1], signal.SIGSTOP)
    begun = time.monotonic()
    one.process.send_signal(signal.SIGTERM)
    assert one.end() == 75, one.text
    assert time.monotonic() - begun < 15


PRINTS = "import json, os; print(json.dumps(dict(os.environ)))"
SAVES = """
import os, signal, sys, time
from pathlib import Path
def handle(*_):
    Path("saved").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, handle)
Path("ready").touch()
time.sleep(60)
"""


def test_the_environment_is_that_of_accelerate_launch(
    launch: Callable[..., Launched], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    program = tmp_path / "program.py"
    program.write_text(PRINTS)

    def printed(text: str) -> dict[str, str]:
        return json.loads(next(line for line in text.splitlines() if line.startswith("{")))

    one = launch(tmp_path, program=program)
    assert one.end() == 0
    ours = printed(one.text)
    added = {*SIMPLE_LAUNCHER, "OMP_NUM_THREADS", "PITSTOP_OUTCOME"}
    env = {k: v for k, v in ours.items() if k not in added}
    argv = [sys.executable, "-m", "accelerate.commands.launch", str(program)]
    done = subprocess.run(argv, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS, check=True)
    theirs = printed(done.stdout)
    assert Path(ours.pop("PITSTOP_OUTCOME")).is_absolute()
    for environment in ours, theirs:
        environment.pop(
            "TORCHINDUCTOR_CACHE_DIR", None
        )  # of some import of torch: accelerate's, or one in this process
    theirs.setdefault("ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION", "False")  # which accelerate 1.3 does not know
    assert ours == theirs


def test_a_simple_launcher_between_does_not_swallow_the_signal(launch: Callable[..., Launched], tmp_path: Path) -> None:
    """A --config_file for one process may ask for it: it dies of SIGTERM, and passes nothing on."""
    program, config = tmp_path / "program.py", tmp_path / "config.yaml"
    program.write_text(SAVES)
    config.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\nmixed_precision: 'no'\nnum_processes: 1\n"
        "num_machines: 1\nuse_cpu: true\ndebug: false\n"
    )
    one = launch(tmp_path, "--config_file", str(config), program=program)
    one.until(lambda: (tmp_path / "ready").exists())
    one.process.send_signal(signal.SIGTERM)
    assert one.end() == 75, one.text
    assert (tmp_path / "saved").exists()
