"""Images made by formula, with known truth."""
