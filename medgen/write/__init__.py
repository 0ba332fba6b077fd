"""Results become files that another system can open."""
