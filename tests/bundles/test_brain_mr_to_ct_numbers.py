"""The card's claim, on the first of its simulated people: nearer than any monotone mapping, and bone where bone is."""

from pathlib import Path

import numpy as np
import pytest

from medgen.run.bundle import open_bundle
from medgen.run.evaluate import evaluate
from medgen.run.job import manifest_pairs, predict_case
from medgen.run.phantom import write_phantoms
from medgen.run.protocol import find_protocol


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning")
def test_people_of_another_head_score_what_the_card_says(real_data: Path, tmp_path: Path) -> None:
    write_phantoms(Path("head-templates"), tmp_path / "people", count=2, data_root=real_data)
    pairs = manifest_pairs(tmp_path / "people" / "manifest.json", "test")
    bundle = open_bundle("brain_mr_to_ct", device="cpu")
    results = []

    def predicted(case):  # noqa: ANN001, ANN202
        results.append(predict_case(bundle, case))
        return results[-1]

    rows = evaluate(pairs, predicted, tmp_path / "out", find_protocol("hounsfield")).rows
    for row in rows:
        assert row.score is not None
        assert row.simple is not None
        assert row.score["bone_dice"] > row.simple["bone_dice"] + 0.1
    assert np.mean([row.score["mae_hu"] for row in rows]) < np.mean([row.simple["mae_hu"] for row in rows])
    for result in results:
        assert result.kind.unit == "HU"
        assert -1024 <= result.image.min() < -900
        assert result.image.max() <= 3071
