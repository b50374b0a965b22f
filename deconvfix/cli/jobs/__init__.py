"""What the command line does with each kind of file."""
