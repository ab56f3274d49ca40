"""`python -m psa_triton`: the `psa` command."""

from __future__ import annotations

from psa_triton.tools.cli.app import main

if __name__ == "__main__":
    main()
