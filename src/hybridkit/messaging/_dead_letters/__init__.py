"""Dead letters: their form, their queue, and how they are read and moved."""
