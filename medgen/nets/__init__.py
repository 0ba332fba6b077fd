"""Networks that MONAI lacks, one family a file."""
