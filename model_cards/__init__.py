"""Templates of the cards that models and data sets are published with, and what fills them from results."""
