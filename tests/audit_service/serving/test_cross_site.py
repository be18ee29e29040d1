"""Other people's pages cannot use the audit through a browser that can reach it; everything else is as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from audit_service.config import load_config
from audit_service.errors import ForeignSiteError
from audit_service.serving.cross_site import Sites
from influence_engine.errors import InfluenceError
from tests.audit_service.serving.conftest import served
from tests.audit_service.serving.test_middleware import ORIGIN, error_of, service_named

JSON = {"content-type": "application/json"}
LOOPBACK = ["localhost", "localhost:3000", "LOCALHOST.", "a.localhost:80", "127.0.0.1:3000", "[::1]:3000"]
WITHIN = ["10.1.2.3", "sentiment:3000", "testserver"]
FOREIGN = ["evil.example", "evil.example:3000", "127.0.0.1.evil.example", "localhost.evil.example", "a@evil.example"]


@pytest.mark.parametrize("host", [*LOOPBACK, *WITHIN, ""])
def test_names_that_no_stranger_can_own_need_not_be_named(host: str) -> None:
    Sites().check(host, "")


@pytest.mark.parametrize("host", [*FOREIGN, "[::1", "127.0.0.1:x.evil.example"])
def test_any_other_name_is_refused_with_the_key_that_lets_it_in(host: str) -> None:
    with pytest.raises(ForeignSiteError, match=r"serve\.hosts"):
        Sites().check(host, "")


def test_named_hosts_and_origins_may_ask() -> None:
    sites = Sites.of(["Audit.example"], ["https://desk.example/"], {"allow_origins": ["*", ORIGIN]})
    for origin in ("", "https://audit.example:8443", "https://desk.example", "HTTPS://Desk.example", ORIGIN):
        sites.check("audit.example:8443", origin)
    for origin in ("https://audit.example", "http://desk.example", "null", "*", "https://desk.example.evil.example"):
        with pytest.raises(ForeignSiteError, match=r"serve\.origins"):
            sites.check("audit.example:8443", origin)
    Sites.of(["*"], [], None).check("anything.example", "")
    Sites.of([], [], {"allow_origin_regex": r"https://.*\.desk\.example"}).check("localhost", "https://a.desk.example")


def test_only_the_audits_own_endpoints_ask_who_asks(write_config: Callable[..., Path]) -> None:
    write_config()
    with served(service_named("films_by_name")) as client:
        for name, value in (("host", "evil.example"), ("origin", "https://evil.example")):
            for path in ("/audit/drift", "/audit/explain", "/audit/feedback", "/audit/jobs/submit"):
                answer = client.post(path, content=b"{}", headers={**JSON, name: value})
                assert (path, answer.status_code, error_of(answer)["code"]) == (path, 403, "forbidden")
            assert client.post("/judge", json={"text": "fine"}, headers={name: value}).status_code == 200
            assert client.get("/livez", headers={name: value}).status_code == 200
        bare = client.post("/audit/drift", content=b"{}")
        assert (bare.status_code, error_of(bare)["code"]) == (415, "unsupported_media_type")
        assert client.post("/judge", content=b'{"text": "fine"}').status_code == 200


def test_hosts_and_origins_come_from_the_config(write_config: Callable[..., Path]) -> None:
    more = "profile: public\nprofiles: {public: {serve: {hosts: [audit.example], origins: ['https://desk.example']}}}"
    write_config(more=more)
    with served(service_named("films_for_desk")) as client:
        headers = {**JSON, "host": "audit.example", "origin": "https://desk.example"}
        assert client.post("/audit/drift", content=b"{}", headers=headers).status_code == 200


@pytest.mark.parametrize("serve", ["hosts: ['a.example:80']", "origins: ['desk.example']", "origins: ['https://a/b']"])
def test_what_is_no_name_and_no_origin_is_refused_at_the_start(write_config: Callable[..., Path], serve: str) -> None:
    file = write_config(more=f"profile: p\nprofiles: {{p: {{serve: {{{serve}}}}}}}")
    with pytest.raises(InfluenceError, match="it should be"):
        load_config(file)
