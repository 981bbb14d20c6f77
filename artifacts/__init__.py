"""What skillguard serves and loads: the format of guard artifacts and the demo model."""
