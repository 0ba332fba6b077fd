"""medgen: generative medical imaging on MONAI.

Rooms, in the order in which data passes: `read`, `prepare`, (`nets`, `losses`, `engines`), `infer`, `write`; `run`
joins them, `cli` calls `run`.
"""

__version__ = "0.1.0"
