"""`growth-study`: recipes of growth against training from scratch."""
