"""TLS with an authority of one's own, as `--ca` gives it."""

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
from service_on_loopback import LoopbackService

from lossguard.sidecar.client import Accepted, Client, Failed
from lossguard.wire.chunk import Chunk, ChunkId, encode
from lossguard.wire.frame import Frames, Schema

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")

ID = ChunkId("ads", "r", "0" * 32, 0)
CHUNK = encode(Chunk(ID, Frames.of(Schema(("loss",)), [1], [[0.5]])))


def make_authority(folder: Path) -> tuple[Path, Path]:
    folder.mkdir()
    certificate, key = folder / "authority.pem", folder / "key.pem"
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    subprocess.run([*command, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    return certificate, key


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
