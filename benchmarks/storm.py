"""A run that is killed again and again, against one that is not: the same bits?

    python benchmarks/storm.py --kills 6 recipes/cifar10.py --data cifar10.zip --epochs 4 --save_every 15s

Everything after the options is the command (default: recipes/digits.py), given to `accelerate launch` twice: once
undisturbed; once with a kill -9 of its whole process tree at random instants (seeded), until it has been killed that
often, and then left to end. Printed are the result, the speed, the SHA-256 of both final models, whether metrics.jsonl
agrees, and what the kills cost.
"""

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pitstop.files import read_json, read_lines
from pitstop.record import WALL_CLOCK_FIELDS


def start(command: list[str], runs: Path) -> subprocess.Popen[bytes]:
    program = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        *command,
        "--runs_dir",
        str(runs),
        "--tracker",
        "none",
    ]
    log = open(runs.with_suffix(".log"), "ab")  # noqa: SIM115 - it lives as long as the process
    return subprocess.Popen(program, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def progress(runs: Path) -> tuple[int, int]:
    """(step, total) of the newest checkpoint or heartbeat; (0, 0) before the first."""
    for status in runs.glob("*/status.json"):
        record = read_json(status)
        return record["step"], record["total_steps"]
    return 0, 0


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """kill -9 of the launcher and of everything that it has started: they share its session."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def storm(command: list[str], runs: Path, kills: int, seconds: float, seed: int) -> list[str]:
    """Runs the command to its end, killed `kills` times, about evenly over `seconds`. Returns what happened."""
    chance, story = random.Random(seed), []
    for number in range(kills):
        process, begun = start(command, runs), time.monotonic()
        wait = 10 + chance.uniform(0.2, 1.8) * seconds / (kills + 1)  # 10 s: the start-up
        try:
            process.wait(timeout=wait)
            story.append(f"ended by itself before kill {number + 1}")
            return story
        except subprocess.TimeoutExpired:
            kill_tree(process)
        story.append(f"kill {number + 1} after {time.monotonic() - begun:.1f} s, at step {progress(runs)[0]} or later")
        print(story[-1], flush=True)
    start(command, runs).wait()
    return story


def rows(run: Path) -> list[dict[str, object]]:
    return [{k: v for k, v in row.items() if k not in WALL_CLOCK_FIELDS} for row in read_lines(run / "metrics.jsonl")]


def report(name: str, run: Path, seconds: float) -> str:
    model = hashlib.sha256((run / "final" / "model.safetensors").read_bytes()).hexdigest()
    speeds = sorted(r["images_per_second"] for r in read_lines(run / "metrics.jsonl") if r["kind"] == "train")
    events = read_lines(run / "events.jsonl")
    saves = sorted(event["write_seconds"] for event in events if event["event"] == "save")
    status = read_json(run / "status.json")
    print(
        f"{name}: {status['state']} after {status['attempt']} attempts, {seconds:.0f} s of wall time, "
        f"{status['total_steps']} steps\n  result      {status['result']}\n"
        f"  images/s    median {speeds[len(speeds) // 2]} ({speeds[0]} to {speeds[-1]}, n={len(speeds)})\n"
        f"  saves       {len(saves)}, median {saves[len(saves) // 2]:.3f} s, longest {saves[-1]:.3f} s\n"
        f"  restores at {[event['step'] for event in events if event['event'] == 'restore']}\n  SHA-256     {model}"
    )
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the instants")
    parser.add_argument("--folder", help="where the two runs are kept; default: a temporary folder")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="recipe and its flags")
    given = parser.parse_args()
    command = given.command or [str(Path(__file__).parents[1] / "recipes" / "digits.py"), "--save_every", "2s"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(given.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        begun = time.monotonic()
        if start(command, folder / "undisturbed").wait():
            sys.exit((folder / "undisturbed.log").read_text()[-2000:])
        undisturbed = time.monotonic() - begun
        begun = time.monotonic()
        storm(command, folder / "stormed", given.kills, undisturbed, given.seed)
        stormed = time.monotonic() - begun
        [clean], [killed] = folder.glob("undisturbed/*/"), folder.glob("stormed/*/")
        same = report("undisturbed", clean, undisturbed) == report("stormed", killed, stormed)
        print(f"final models: {'the same bytes' if same else 'DIFFERENT'}")
        print(f"metrics.jsonl: {'the same rows' if rows(clean) == rows(killed) else 'DIFFERENT'}")
        sys.exit(0 if same and rows(clean) == rows(killed) else 1)


if __name__ == "__main__":
    main()
