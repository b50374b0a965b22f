"""Launcher of the command `deconvfix` from a checkout, without installing: `python cli.py --help`."""

from deconvfix.cli.main import main

if __name__ == "__main__":
    main(prog_name="deconvfix")
