"""`python -m app gpu`: everything that a GPU should do, tried and held against the CPU, in one table."""
