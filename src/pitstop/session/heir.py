"""The same command once more, out of reach of the terminal that was closed.

Where one process trains it outlives its terminal. Several are ended by torchrun's agent, which takes the SIGHUP of a
closed terminal for a wish to stop and kills 30 s later (torch.distributed.elastic.agent.server.api): so they save and
leave, and the agent's own command is given again, in a session without a terminal.
"""

import os
import subprocess
from pathlib import Path

from pitstop.launcher import background_log, command_line, is_launcher

WAIT_TURNS = 300  # of a fifth of a second: for the agent to end, whose port is needed again
SCRIPT = '''i=0; while kill -0 "$0" 2>/dev/null && [ $i -lt "$1" ]; do i=$((i+1)); sleep 0.2; done; shift; exec "$@"'''


def start_again(runs_dir: Path) -> Path | None:
    """Starts this process's launcher once more as soon as it has ended; the file to which its output goes. None: no
    launcher has started this process, or ranks on other machines belong to it.

    Raises:
        OSError: it cannot be started, or its output cannot be written.
    """
    agent = os.getppid()
    if not is_launcher(agent) or os.environ.get("LOCAL_WORLD_SIZE") != os.environ.get("WORLD_SIZE"):
        return None
    process = Path(f"/proc/{agent}")
    variables = (process / "environ").read_bytes().split(b"\0")  # its own: ours has what it gave its ranks
    env = dict(variable.split(b"=", 1) for variable in variables if b"=" in variable)
    runs_dir.mkdir(parents=True, exist_ok=True)
    nameless = background_log(runs_dir, os.getpid())
    with open(nameless, "ab") as output:
        heir = subprocess.Popen(
            ["/bin/sh", "-c", SCRIPT, str(agent), str(WAIT_TURNS), *command_line(agent)],
            cwd=(process / "cwd").readlink(),
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    return nameless.rename(background_log(runs_dir, heir.pid))
