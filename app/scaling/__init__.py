"""`scaling`: laws fitted to finished runs."""
