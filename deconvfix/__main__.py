"""`python -m deconvfix` is the command `deconvfix`."""

from deconvfix.cli.main import main

if __name__ == "__main__":
    main(prog_name="deconvfix")
