"""Many runs: those of one plan, carrying them out; gathering and listing those that are there."""
