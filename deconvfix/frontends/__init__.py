"""How models of each kind are searched and rewritten. A new front end is a file and a line."""
