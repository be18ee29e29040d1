"""Promises: photographs of solar cells are read with their judgement, no module is in two parts, and nobody fetches
them without having said that their licence fits.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from influence_engine.data import DataSettings, load_examples
from influence_engine.data.sources import elpv, licence_to_accept
from influence_engine.demo_assets.packages import ACCEPT_VARIABLE, ELPV, fetch_package
from influence_engine.errors import DataError
from influence_engine.tasks import ImageClassification, PictureProcessor

TASK = ImageClassification(PictureProcessor(size=(16, 16)), [elpv.SOUND, elpv.DEFECTIVE])


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    """130 photographs, as the package has them: 70 of one type, 60 of the other, every tenth judged with a doubt."""
    (tmp_path / "images").mkdir()
    lines = []
    for number in range(130):
        judgement = ["0.0", "1.0", "0.3333333333333333"][2 if number % 10 == 9 else number % 2]
        lines.append(f"images/cell{number:04d}.png  {judgement}   {'mono' if number < 70 else 'poly'}")
        Image.new("L", (20, 20), number).save(tmp_path / "images" / f"cell{number:04d}.png")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n", encoding="ascii")
    return tmp_path


def test_sure_judgements_become_labels_and_sixty_in_a_row_a_module(cells: Path) -> None:
    table = elpv.read_cells(cells)
    assert len(table.rows) == 117
    first, last = table.rows[0].values, table.rows[-1].values
    assert (first["id"], first["label"], first["cell"], first["module"]) == ("cell0000", "sound", "mono", "module-00")
    assert (last["label"], last["cell"], last["module"]) == ("sound", "poly", "module-02")
    assert {row.values["module"] for row in table.rows} == {"module-00", "module-01", "module-02"}
    assert (table.licence, table.part_by) == ("CC-BY-NC-SA-4.0", "module")


def test_without_the_licence_accepted_nothing_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ACCEPT_VARIABLE, raising=False)
    with pytest.raises(DataError) as refused:
        fetch_package(ELPV, folder=tmp_path / "packages")
    for said in ("CC-BY-NC-SA-4.0", "no commercial use", "--accept-licence", f"{ACCEPT_VARIABLE}=CC-BY-NC-SA-4.0"):
        assert said in refused.value.message
    assert not (tmp_path / "packages").exists()
    settings = DataSettings(packaged="elpv/solar_cells")
    assert licence_to_accept(settings, tmp_path) == ELPV.licence
    monkeypatch.setenv(ACCEPT_VARIABLE, "MIT, CC-BY-NC-SA-4.0")
    assert licence_to_accept(settings, tmp_path) is None
    assert licence_to_accept(DataSettings(packaged="vader/movies"), tmp_path) is None


def test_no_value_of_part_by_is_in_two_parts_and_paths_are_below_the_file(cells: Path) -> None:
    rows = [f"cell{number:04d},images/cell{number:04d}.png,sound,machine-{number % 12}" for number in range(130)]
    (cells / "cells.csv").write_text("id,image,label,machine\n" + "\n".join(rows) + "\n", encoding="utf-8")
    seen: dict[str, str] = {}
    for part in ("train", "validation", "test"):
        settings = DataSettings.model_validate({"csv": cells / "cells.csv", "part": part, "part_by": "machine"})
        try:
            found = load_examples(settings, TASK).examples
        except DataError:
            continue  # of twelve machines none need be in a part
        for example in found:
            assert Path(example["image"]).is_file()
            assert seen.setdefault(example["metadata"]["machine"], part) == part
    assert len(seen) == 12
    with pytest.raises(DataError, match="Did you mean 'machine'"):
        load_examples(DataSettings(csv=cells / "cells.csv", part="train", part_by="machin"), TASK)


def test_a_damaged_photograph_is_listed_with_its_line(cells: Path) -> None:
    (cells / "images" / "cell0003.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    (cells / "cells.csv").write_text(
        "image,label\nimages/cell0002.png,sound\nimages/cell0003.png,sound\nimages/none.png,sound\n", encoding="utf-8"
    )
    with pytest.raises(DataError) as refused:
        load_examples(DataSettings(csv=cells / "cells.csv"), TASK)
    assert "line 3: 'image' is neither PNG nor JPEG" in refused.value.message or "line 3: 'image' is damaged" in (
        refused.value.message
    )
    assert "line 4: 'image' cannot be read" in refused.value.message
