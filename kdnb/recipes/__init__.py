"""From the checked parameters of a notebook to the pieces that it puts together."""
