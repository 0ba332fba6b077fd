"""Voxels as read become voxels as a network wants them, and back; each class is a MONAI transform."""
