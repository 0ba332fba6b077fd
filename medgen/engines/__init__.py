"""Trainers for steps that MONAI lacks or gets wrong; parts arrive as arguments."""
