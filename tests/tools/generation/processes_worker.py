"""One of two processes: `processes_worker.py` with the environment of torchrun; prints what it found as JSON."""

from __future__ import annotations

import json
import os

from psa_triton.tools.generation.processes import Processes, launched_processes


def error_of(processes: Processes) -> str:
    def fail() -> None:
        raise ValueError("no such folder")

    try:
        processes.from_main(fail)
    except ValueError as error:
        return str(error)
    return ""


def main() -> None:
    with launched_processes() as processes:
        found = {
            "processes": [processes.count, processes.index, processes.local_index, processes.is_main],
            "from_main": processes.from_main(lambda: f"made by {processes.index}"),
            "error": error_of(processes),
            "share": processes.share("abcde"),
            "gathered": processes.gather({"index": processes.index}),
        }
        print(json.dumps(found), flush=True)
        if processes.index == 1:
            os._exit(9)
        try:
            processes.gather(0)
        except ConnectionError as error:
            print(json.dumps(str(error)), flush=True)
            os._exit(0)  # the group cannot be left in good order any more


if __name__ == "__main__":
    main()
