"""Bundles in MONAI Label: an app for its server, which viewers and scripts talk to."""
