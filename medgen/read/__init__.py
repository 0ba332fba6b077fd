"""Files become cases and volumes; geometry is checked, not guessed."""
