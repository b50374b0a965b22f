"""How the weights of a form that is not exact are found from the trained ones."""
