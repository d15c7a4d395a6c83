"""`compare`: models on tasks under one budget."""
