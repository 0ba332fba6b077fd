"""Parts of `benchmarks/speed.py`: what runs against what, how it is timed and compared, and what is written of it."""
