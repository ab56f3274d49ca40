"""Attaching PSA to models of other libraries, by their public means. One package or module a library."""
