"""MONAI inferers: windows over large volumes, and whether an input is what a model was trained on."""
