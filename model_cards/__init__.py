"""Templates of model cards and dataset cards, and the code that fills them."""
