"""What the records say is what they say under their own names: a file on its way to one is none."""

import json
from pathlib import Path

from medgen.run.publish import Folder
from medgen.write.atomic import PREFIX, atomic_write


def test_a_file_on_its_way_is_no_record_whole_or_not(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"case": "a"}))
    (tmp_path / f"{PREFIX}1-2-3-4.json").write_text(json.dumps({"case": "a again"}))
    (tmp_path / f"{PREFIX}1-2-3-5.json").write_text("")
    folder = Folder(tmp_path, dict)
    assert folder.read()[1] == [{"case": "a"}]
    with atomic_write(tmp_path / "b.json") as part:
        part.write_text(json.dumps({"case": "b"}))
        assert folder.read()[1] == [{"case": "a"}]
    assert sorted(record["case"] for record in folder.read()[1]) == ["a", "b"]
