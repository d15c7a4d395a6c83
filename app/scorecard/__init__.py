"""`scorecard`: nine requirements, measured for any model."""
