"""TLS with an authority of one's own, as `--ca` gives it."""

import ssl
from pathlib import Path

import pytest
from certificates import make_authority
from service_on_loopback import LoopbackService

from lossguard.sidecar.client import Accepted, Client, Failed
from lossguard.wire.chunk import Chunk, ChunkId, encode
from lossguard.wire.frame import Frames, Schema

ID = ChunkId("ads", "r", "0" * 32, 0)
CHUNK = encode(Chunk(ID, Frames.of(Schema(("loss",)), [1], [[0.5]])))


@pytest.mark.usefixtures("no_leaks")
def test_the_given_authority_is_trusted_and_no_other(tmp_path: Path) -> None:
    certificate, key = make_authority(tmp_path / "one")
    other, _ = make_authority(tmp_path / "other")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    service = LoopbackService(tls=context)
    with_it = Client(service.url, ca_file=str(certificate))
    strangers = [Client(service.url), Client(service.url, ca_file=str(other))]
    try:
        assert isinstance(with_it.put_chunk(ID, CHUNK), Accepted)
        refused = [each.put_chunk(ID, CHUNK) for each in strangers]
    finally:
        for each in (with_it, *strangers):
            each.close()
        service.close()
    for each in refused:
        assert isinstance(each, Failed)
        assert f"{service.url} is not trusted: " in each.reason
        assert "--ca" in each.reason


def refusal(service: LoopbackService, url: str, ca_file: Path) -> str:
    client = Client(url, ca_file=str(ca_file))
    try:
        outcome = client.put_chunk(ID, CHUNK)
    finally:
        client.close()
        service.close()
    assert isinstance(outcome, Failed)
    return outcome.reason


@pytest.mark.parametrize(
    ("days", "name", "advice"),
    [
        (-1, "127.0.0.1", "certificate has expired: renew the service's certificate, or set this machine's clock"),
        (2, "other.example", "call the service by a name that its certificate holds"),
        (2, "127.0.0.9", "call the service by a name that its certificate holds"),
    ],
)
@pytest.mark.usefixtures("no_leaks")
def test_what_another_authority_would_not_mend_gets_advice_of_its_own(
    tmp_path: Path, days: int, name: str, advice: str
) -> None:
    certificate, key = make_authority(tmp_path / "one", days=days, name=name)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    service = LoopbackService(tls=context)
    said = refusal(service, service.url, certificate)
    assert advice in said
    assert "--ca" not in said


@pytest.mark.usefixtures("no_leaks")
def test_the_wrong_scheme_is_guessed_from_what_comes_back(tmp_path: Path) -> None:
    certificate, _ = make_authority(tmp_path / "one")
    plain = LoopbackService()
    said = refusal(plain, plain.url.replace("http:", "https:"), certificate)
    assert "should the URL begin with http://?" in said
