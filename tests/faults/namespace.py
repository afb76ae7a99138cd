"""tiny.py as the first process of a machine of its own (a pid namespace), with two more processes beside it.

A kill -9 of that first process ends all of them at once, as the machine's end does. Its pid is on the first line.
"""

import ctypes
import os
import runpy
import sys
import time
from pathlib import Path

CLONE_NEWPID = 0x20000000


def main() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWPID):
        raise OSError(ctypes.get_errno(), "no pid namespace here")
    first = os.fork()
    if first:
        print(f"first {first}", flush=True)
        _, status = os.waitpid(first, 0)
        os._exit(0 if status == 0 else 9)
    for _ in range(2):  # as loader workers, or whatever else the machine runs
        if os.fork() == 0:
            while True:
                time.sleep(60)
    assert os.getpid() == 1
    sys.argv[0] = str(Path(__file__).parents[1] / "tiny.py")
    runpy.run_path(sys.argv[0], run_name="__main__")
    os._exit(0)


if __name__ == "__main__":
    main()
