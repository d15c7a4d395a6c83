"""Words out: files, numbers, tables, figures, intervals."""
