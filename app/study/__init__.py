"""Many runs under one plan: what they are, carrying them out, gathering them."""
