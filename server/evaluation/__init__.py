"""`skillguard evaluate`: what a guard takes away and what it leaves, measured through the API that users have."""
