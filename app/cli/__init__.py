"""Words in: options, one line for each mistake, help."""
