"""``init --service FILE`` adds three lines to a service that exists and touches nothing else."""

from __future__ import annotations

import ast
import difflib

import pytest

from audit_service.workflows.adoption.service_file import add_audit
from influence_engine.errors import SettingsError

SERVICE = '''"""Somebody's service."""

from __future__ import annotations

import bentoml
from pydantic import BaseModel

LIMIT = 3


class Answer(BaseModel):
    sentiment: str
    score: float


@bentoml.service(resources={"cpu": "1"})
class Reviews:
    @bentoml.api
    def health(self) -> str:
        return "fine"

    @bentoml.api(batchable=False)
    async def predict(self, review: str) -> Answer:
        return Answer(sentiment="good", score=1.0)
'''


def added_lines(before: str, after: str) -> list[str]:
    return [line[1:] for line in difflib.ndiff(before.splitlines(), after.splitlines()) if line.startswith("+")]


def class_of(source: str, name: str) -> ast.ClassDef:
    return next(node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef) and node.name == name)


def test_exactly_an_import_a_base_class_and_a_decorator_are_added() -> None:
    edited = add_audit(SERVICE, config="reviews", name="service.py")

    assert [line.strip() for line in added_lines(SERVICE, edited.source)] == [
        "from audit_service import AuditMixin, audited",
        'class Reviews(AuditMixin, config="reviews"):',
        '@audited(label="sentiment", confidence="score", inputs={"text": "review"})',
    ]


def test_the_method_that_predicts_is_chosen_and_the_decorator_sits_right_above_it() -> None:
    edited = add_audit(SERVICE, config="reviews", name="service.py")

    assert (edited.service, edited.method) == ("Reviews", "predict")
    methods = {node.name: node for node in class_of(edited.source, "Reviews").body if hasattr(node, "decorator_list")}
    assert [ast.unparse(line) for line in methods["predict"].decorator_list] == [
        "bentoml.api(batchable=False)",
        "audited(label='sentiment', confidence='score', inputs={'text': 'review'})",
    ]
    assert len(methods["health"].decorator_list) == 1


@pytest.mark.parametrize(
    ("parameters", "inputs"),
    [
        ("self, text: str", None),
        ("self, review: str, language: str = 'en'", "{'text': 'review'}"),
        ("self, ctx: bentoml.Context, words: str", "{'text': 'words'}"),
        ("self, request: Question, /", "{'text': 'request.body'}"),
    ],
)
def test_the_input_is_named_where_it_is_not_called_text(parameters: str, inputs: str | None) -> None:
    source = SERVICE.replace("self, review: str", parameters)
    source += "\n\nclass Question(BaseModel):\n    language: str\n    body: str\n"

    edited = add_audit(source, config="reviews", name="service.py")

    (decorator,) = [line.strip() for line in edited.source.splitlines() if line.strip().startswith("@audited")]
    call = ast.parse(decorator[1:], mode="eval").body
    assert isinstance(call, ast.Call)
    assert {word.arg: ast.unparse(word.value) for word in call.keywords}.get("inputs") == inputs


ANSWERS = """

class Topic(str, Enum):
    BILLING = "billing"


class Verdict(BaseModel):
    label: str
    confidence: float


class Routing(BaseModel):
    topic: str
    certainty: float
    queue: str


class Kept(Routing):
    prediction_id: str | None = None


class Odd(BaseModel):
    text: str
    outcome: Literal["late", "lost"]
    how_sure: Annotated[float, "share"]
    note: Optional[str] = None


class Enumerated(TypedDict):
    found: Topic
    took_ms: int


class Wrapped(BaseModel):
    verdict: Verdict
    took_ms: float


class Several(BaseModel):
    first: str
    second: str
"""


@pytest.mark.parametrize(
    ("annotation", "arguments"),
    [
        ("Verdict", 'label="label", confidence="confidence"'),
        ("Routing", 'label="topic", confidence="certainty"'),
        ("'Routing'", 'label="topic", confidence="certainty"'),
        ("Kept | None", 'label="topic", confidence="certainty"'),
        ("list[Routing]", 'label="topic", confidence="certainty"'),
        ("Odd", 'label="outcome", confidence="how_sure"'),
        ("Enumerated", 'label="found"'),
        ("Wrapped", 'label="verdict.label", confidence="verdict.confidence"'),
        ("tuple[str, float]", 'label="0", confidence="1"'),
        ("str", "label=str"),
    ],
)
def test_label_and_confidence_are_told_by_kinds_and_likely_names(annotation: str, arguments: str) -> None:
    source = SERVICE.replace("self, review: str) -> Answer", f"self, text: str) -> {annotation}") + ANSWERS

    edited = add_audit(source, config="reviews", name="service.py")

    assert f"    @audited({arguments})\n" in edited.source
    assert edited.clear


@pytest.mark.parametrize("annotation", ["Several", "Imported", "dict[str, str]", "list[dict]"])
def test_a_label_that_cannot_be_told_is_left_open_instead_of_guessed(annotation: str) -> None:
    source = SERVICE.replace("self, review: str) -> Answer", f"self, text: str) -> {annotation}") + ANSWERS

    edited = add_audit(source, config="reviews", name="service.py")

    assert '    @audited(label="?")\n' in edited.source
    assert not edited.clear


def test_the_keys_of_a_dictionary_that_is_returned_say_where_the_label_is() -> None:
    source = SERVICE.replace("-> Answer", "-> dict").replace(
        'Answer(sentiment="good", score=1.0)', '{"queue": 3, "intent": "late", "certainty": 0.4}'
    )

    edited = add_audit(source, config="reviews", name="service.py")

    assert '@audited(label="intent", confidence="certainty", inputs={"text": "review"})' in edited.source


@pytest.mark.parametrize(
    ("statement", "bases"),
    [
        ("class Reviews:", ["AuditMixin"]),
        ("class Reviews():", ["AuditMixin"]),
        ("class Reviews(Base):", ["AuditMixin", "Base"]),
        ("class Reviews( Base, Other ):", ["AuditMixin", "Base", "Other"]),
        ("class Reviews(\n    Base,\n    Other,\n):", ["AuditMixin", "Base", "Other"]),
        ("class Reviews(metaclass=Meta):", ["AuditMixin"]),
    ],
)
def test_the_mixin_comes_before_the_bases_that_are_there(statement: str, bases: list[str]) -> None:
    edited = add_audit(SERVICE.replace("class Reviews:", statement), config="reviews", name="service.py")

    service = class_of(edited.source, "Reviews")
    assert [ast.unparse(base) for base in service.bases] == bases
    assert service.keywords[-1].arg == "config"
    assert ast.literal_eval(service.keywords[-1].value) == "reviews"
    assert all(line == line.rstrip() for line in edited.source.splitlines())


def test_line_endings_of_the_file_are_kept() -> None:
    edited = add_audit(SERVICE.replace("\n", "\r\n"), config="reviews", name="service.py")

    assert edited.source.count("\n") == edited.source.count("\r\n")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def broken(:", "line 1: not valid Python"),
        ("class Plain:\n    def predict(self): ...\n", "no class with @bentoml.service"),
        (SERVICE.replace("class Reviews:", "class Reviews(AuditMixin):"), "Reviews is audited already"),
    ],
)
def test_a_source_that_cannot_be_edited_is_refused_with_the_reason(source: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        add_audit(source, config="reviews", name="service.py")
