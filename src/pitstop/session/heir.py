"""The same command once more, out of reach of the terminal that was closed.

Where one process trains it outlives its terminal. Several are ended by torchrun's agent, which takes the SIGHUP of a
closed terminal for a wish to stop and kills 30 s later (torch.distributed.elastic.agent.server.api): so they save and
leave, and the agent's own command is given again, in a session without a terminal. That waits for both to end, so it is
started at once: the agent, told once more, has no patience. It takes a free port: several runs whose terminal closed
would ask for 29500 at the same moment, and accelerate looks long before torchrun binds (2 of 8 pairs ended so).
"""

import os
import subprocess
from functools import partial
from pathlib import Path

from pitstop.launcher import agent, background_log

WAIT_TURNS = 600  # of a fifth of a second: for the agent to end, and rank 0, which saves
# torchrun's flags; without an address it takes the host's name, which need not resolve.
FREE_PORT = {b"PET_STANDALONE": b"1", b"PET_LOCAL_ADDR": b"127.0.0.1"}
SCRIPT = """agent=$0; rank=$1; turns=$2; shift 2
lives() { grep -qs "^State:.[^ZX]" /proc/$1/status; }
while [ $((turns-=1)) -gt 0 ] && { lives $agent || lives $rank; }; do sleep 0.2; done
exec "$@"
"""


def start_again(runs_dir: Path) -> Path | None:
    """Starts this process's launcher once more as soon as it has ended; the file to which its output goes. None: no
    launcher has started this process, or ranks on other machines belong to it.

    Raises:
        OSError: it cannot be started, or its output cannot be written.
    """
    if not (parent := agent()) or os.environ.get("LOCAL_WORLD_SIZE") != os.environ.get("WORLD_SIZE"):
        return None
    runs_dir.mkdir(parents=True, exist_ok=True)
    nameless = background_log(runs_dir, os.getpid())
    with open(nameless, "ab") as output:
        start = partial(
            subprocess.Popen,
            ["/bin/sh", "-c", SCRIPT, str(parent.pid), str(os.getpid()), str(WAIT_TURNS), *parent.command],
            cwd=parent.folder,
            env=parent.env | FREE_PORT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        heir = start()
        while os.getsid(heir.pid) != heir.pid:  # the agent signals our group: what it met there before setsid is dead
            heir.wait()
            heir = start()
    return nameless.rename(background_log(runs_dir, heir.pid))
