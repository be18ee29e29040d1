"""Sentences with sentiment ratings that come with the source distribution of ``vaderSentiment``.

Hutto and Gilbert, VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text, ICWSM 2014.
Each line is an id, the mean rating of twenty people in [-4, 4], and the text, separated by tabs.
"""

from __future__ import annotations

from pathlib import Path

from influence_engine.data.sources.table import Row, Table, unicode_problem

FILES = {
    "vader/movies": "movieReviewSnippets_GroundTruth.txt",
    "vader/tweets": "tweets_GroundTruth.txt",
    "vader/amazon": "amazonReviewSnippets_GroundTruth.txt",
    "vader/news": "nytEditorialSnippets_GroundTruth.txt",
}
LICENCE = "MIT"
COLUMNS = ["id", "text", "label", "rating"]


def read_ratings(path: Path, *, name: str, min_rating: float) -> Table:
    """Reads one of the files: label ``positive`` where the mean rating is above 0, else ``negative``.

    Args:
        path: The file.
        name: The file's key in ``FILES``.
        min_rating: Sentences with a mean rating nearer to 0 than this are left out: people did not agree, or saw none.
    """
    prefix = name.rpartition("/")[2]
    rows = []
    # Neither split at other line ends than a line feed nor by csv: quotes in these texts are only quotes.
    for line, content in enumerate(path.read_bytes().rstrip(b"\r\n").split(b"\n"), start=1):
        row = _row(line, content.rstrip(b"\r").decode("utf-8", errors="surrogateescape"), prefix)
        if row.problem is not None or abs(row.values["rating"]) >= min_rating:
            rows.append(row)
    return Table(name=name, location=str(path), unit="line", columns=COLUMNS, rows=rows, licence=LICENCE)


def _row(line: int, content: str, prefix: str) -> Row:
    cells = content.split("\t", 2)
    if len(cells) != 3:
        return Row(line=line, problem=f"has {len(cells)} cells, not id, rating and text")
    number, rating, text = cells
    try:
        value = float(rating)
    except ValueError:
        return Row(line=line, problem=f"the rating {rating!r} is not a number")
    values = {
        "id": f"{prefix}-{number}",
        "text": text.strip(),
        "label": "positive" if value > 0 else "negative",
        "rating": value,
    }
    return Row(line=line, values=values, problem=unicode_problem(values))
