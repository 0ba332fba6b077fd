"""The headline of the card, on the validation patient: the number, what it is worth, and a background of 0."""

import json
from pathlib import Path

import numpy as np
import pytest

from medgen.run.bundle import open_bundle
from medgen.run.evaluate import evaluate
from medgen.run.job import manifest_pairs, predict_case

ROOT = Path(__file__).parents[2]


@pytest.mark.real_data
@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning")
def test_the_validation_patient_scores_what_the_card_says(real_data: Path, tmp_path: Path) -> None:
    bundle = open_bundle("brain_t1_to_t2", device="cpu")
    pairs = manifest_pairs(ROOT / "data_manifests" / "glioma.json", "validation", real_data)
    results = []

    def predicted(case):  # noqa: ANN001, ANN202
        results.append(predict_case(bundle, case))
        return results[-1]

    [row] = evaluate(pairs, predicted, tmp_path).rows
    headline = json.loads((ROOT / "bundles/brain_t1_to_t2/configs/metadata.json").read_text())["headline"]
    assert row.score is not None
    assert row.simple is not None
    assert row.score["psnr_db"] == pytest.approx(headline["value"], abs=0.1)
    assert row.score["psnr_db"] > row.simple["psnr_db"] + 2
    assert row.score["ssim"] > row.simple["ssim"] + 0.1
    [result] = results
    assert np.mean(result.image[result.source == 0] != 0) < 1e-4  # but for zeros enclosed by the brain
    assert 250 < np.median(result.image[result.image > 0]) < 400
