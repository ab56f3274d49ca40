"""What is built on the library: the `psa` command and what its subcommands do. Nothing in the library imports it."""
