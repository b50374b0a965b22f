"""Targets: what runtimes and chips accept, as data; `profiles` has a TOML file for each."""
