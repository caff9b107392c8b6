"""`pytest exercises/`: each exercise of a notebook is one item."""
