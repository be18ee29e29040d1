from __future__ import annotations

from pathlib import Path

from influence_engine.data.sources.vader import read_ratings


def test_the_sign_of_the_rating_is_the_label_and_neutral_sentences_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "ratings.txt"
    path.write_bytes(b"1\t2.25\t\"Bold\" and ''good''\r\n2\t-0.1\tso so\r\n3\t-1.5\tbad\tand worse\r\n")

    table = read_ratings(path, name="vader/movies", min_rating=0.5)

    assert [(row.line, dict(row.values)) for row in table.rows] == [
        (1, {"id": "movies-1", "text": "\"Bold\" and ''good''", "label": "positive", "rating": 2.25}),
        (3, {"id": "movies-3", "text": "bad\tand worse", "label": "negative", "rating": -1.5}),
    ]
    assert table.licence == "MIT"


def test_a_line_of_another_shape_is_a_row_with_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "ratings.txt"
    path.write_bytes(b"1\tgood\r\n2\tmany\tfine\r\n3\t2\tcaf\xe9\r\n")

    assert [row.problem for row in read_ratings(path, name="vader/news", min_rating=0.5).rows] == [
        "has 2 cells, not id, rating and text",
        "the rating 'many' is not a number",
        "column 'text' is not UTF-8: byte 0xe9 after 3 characters",
    ]
