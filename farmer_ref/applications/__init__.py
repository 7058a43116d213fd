"""Uses of an exact likelihood; the paper names none of them."""
