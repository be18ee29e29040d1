"""Photographs of solar cells that glow under current, of the package ``elpv-dataset``: sound ones and defective ones.

Buerhop-Lutz et al., A Benchmark for Visual Identification of Defective Solar Cells in Electroluminescence Imagery, EU
PVSEC 2018; Deitsch et al., Solar Energy 185 (2019). 300 x 300 pixels in shades of grey, from 44 solar modules, each
with an expert's judgement and whether the cell is mono- or polycrystalline.

The package does not say which module a cell is from. The photographs are in the order of the modules, most of which
have 60 cells, so 60 in a row of one type are taken for a module: parts are drawn by modules, since the cells of one are
alike in brightness, sharpness and age, and a model would be tested on what it has almost seen.
"""

from __future__ import annotations

from pathlib import Path

from influence_engine.data.sources.table import Row, Table, require_file

NAME = "elpv/solar_cells"
LICENCE = "CC-BY-NC-SA-4.0"
COLUMNS = ["id", "image", "label", "cell", "module"]
SOUND, DEFECTIVE = "sound", "defective"

_CELLS = 60
_JUDGEMENTS = {"0.0": SOUND, "1.0": DEFECTIVE}
"""Where the expert was sure; a third and two thirds are not in the table."""


def read_cells(folder: Path) -> Table:
    """Reads ``labels.csv``; 2,223 of the 2,624 photographs, those whose judgement is sure.

    Args:
        folder: Where ``labels.csv`` and ``images`` are.

    Raises:
        DataError: there is no such file.
    """
    path = folder / "labels.csv"
    require_file(path, key="packaged")
    rows, module, before = [], -1, ""
    run = 0
    for line, content in enumerate(path.read_text(encoding="ascii").splitlines(), start=1):
        cells = content.split()
        if len(cells) != 3:
            rows.append(Row(line=line, problem=f"has {len(cells)} cells, not path, probability and type"))
            continue
        image, probability, kind = cells
        run = run + 1 if kind == before else 0
        before = kind
        module += run % _CELLS == 0
        if probability in _JUDGEMENTS:
            values = {
                "id": Path(image).stem,
                "image": str(folder / image),
                "label": _JUDGEMENTS[probability],
                "cell": kind,
                "module": f"module-{module:02d}",
            }
            rows.append(Row(line=line, values=values))
    return Table(
        name=NAME, location=str(path), unit="line", columns=COLUMNS, rows=rows, licence=LICENCE, part_by="module"
    )
