"""Provenance tells content apart and says nothing of names."""

import json
from pathlib import Path

from medgen.provenance import Provenance, file_sha256, files_sha256, package_versions


def test_the_hash_follows_content_and_not_name(tmp_path: Path) -> None:
    one, two, other = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    one.write_bytes(b"voxels")
    two.write_bytes(b"voxels")
    other.write_bytes(b"voxelz")
    assert file_sha256(one) == file_sha256(two) != file_sha256(other)


def test_the_hash_of_several_files_ignores_their_order(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "abc"]
    for index, path in enumerate(paths):
        path.write_bytes(bytes([index]))
    assert files_sha256(paths) == files_sha256(reversed(paths)) != files_sha256(paths[:2])
    assert files_sha256(paths[:1]) == file_sha256(paths[0])


def test_the_record_is_json_and_names_the_packages() -> None:
    record = json.loads(json.dumps(Provenance("brain", "0.1.0", "ab", settings={"overlap": 0.5}).to_json()))
    assert record["settings"] == {"overlap": 0.5}
    assert {"medgen", "python", "torch", "monai"} <= record["versions"].keys()
    assert record["versions"] == package_versions()
