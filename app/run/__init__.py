"""One run: fit and its kin, run folders, checkpoints, text, growth on disk, the demo."""
