"""The file of data manifests: the last one counts, it survives restarts and kills, and no node can fill it."""

from __future__ import annotations

from pathlib import Path

from fednc.common.tasks.data_manifest import DataManifest
from fednc.server.storage.data_manifests import FILE, MOST_CHANGES, ManifestFile, read_manifests


def test_the_last_manifest_counts_also_after_a_restart(tmp_path: Path) -> None:
    first, second = DataManifest(examples=16), DataManifest(examples=32)
    file = ManifestFile()
    assert file.note("anna", first.to_text()) == "", "without a folder, nothing is kept"
    file.keep_in(tmp_path)
    assert [file.note("anna", first.to_text()) for _ in range(3)] == ["", "", ""]
    assert file.note("bert", first.to_text()) == ""
    again = ManifestFile()
    again.keep_in(tmp_path)
    again.note("anna", first.to_text())
    assert len((tmp_path / FILE).read_text().splitlines()) == 2, "what a node says again is not written again"
    again.note("anna", second.to_text())
    with (tmp_path / FILE).open("a") as half:
        half.write('{"node": "bert", "mani')
    assert read_manifests(tmp_path) == {"anna": second, "bert": first}
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600


def test_one_node_cannot_fill_the_disk(tmp_path: Path) -> None:
    file = ManifestFile()
    file.keep_in(tmp_path)
    told = [file.note("eve", DataManifest(examples=16 << number).to_text()) for number in range(20)]
    assert told[:MOST_CHANGES] == [""] * MOST_CHANGES
    assert all("not kept" in problem for problem in told[MOST_CHANGES:])
    assert file.note("anna", "nonsense").startswith("the data manifest cannot be used")
    assert set(read_manifests(tmp_path)) == {"eve"}
