"""The bundles that come with medgen: `python -m monai.bundle run` on their folder against `medgen run NAME`."""

from pathlib import Path

from race.arms import Arm, medgen_arm, monai_arms

BUNDLES = Path(__file__).parents[2] / "bundles"
# Bundle: what it is given (a kind of `race.heads`), and how many.
OWN: dict[str, tuple[str, int]] = {
    "brain_t1_to_t2": ("head", 3),
    "brain_mr_to_ct": ("head", 3),
    "ct_low_dose_denoising": ("trunk", 3),
    "brain_vae_anomaly": ("flair", 3),
    "oct_anogan": ("retina", 16),
}


def own_arms(device: str) -> list[Arm]:
    """Returns the arms: as shipped, medgen exact, medgen as it comes."""
    options = f"--device {device}"
    fp32 = medgen_arm("medgen fp32", f"{options} --precision fp32")
    return [monai_arms()[0], fp32, medgen_arm("medgen auto", options)]


def places_of(name: str) -> dict[str, str]:
    """Returns what stands in for the bundle in the commands: its folder for MONAI, its name for medgen."""
    return {"bundle": str(BUNDLES / name), "name": name}
