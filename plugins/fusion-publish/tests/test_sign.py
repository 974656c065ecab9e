"""Signatures with a key pair, offline."""

from __future__ import annotations

import hashlib
import sys
from typing import TYPE_CHECKING, Any

import pytest
from tiny_outputs import read_statement, write_statement

from fusion_core.errors import FusionError, IntegrityError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from hub_server import HubServer


def test_a_missing_package_is_named(
    fuse: Callable[..., str], output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)
    monkeypatch.setitem(sys.modules, "OpenSSL", None)
    with pytest.raises(FusionError, match=r'pip install "fusion-publish\[sign\]"'):
        fuse("sign", output, "--key", tmp_path / "key.pem")


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """Write a private and a public key."""
    pytest.importorskip("model_signing", exc_type=ImportError)
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private = ec.generate_private_key(ec.SECP256R1())
    pem = serialization.Encoding.PEM
    private_format = serialization.PrivateFormat.PKCS8
    text = private.private_bytes(pem, private_format, serialization.NoEncryption())
    public_format = serialization.PublicFormat.SubjectPublicKeyInfo
    (tmp_path / "key.pem").write_bytes(text)
    (tmp_path / "key.pub").write_bytes(private.public_key().public_bytes(pem, public_format))
    return tmp_path / "key.pem", tmp_path / "key.pub"


@pytest.mark.filterwarnings("ignore")
def test_a_signature_finds_a_consistent_forgery(
    fuse: Callable[..., str], output: Path, keys: tuple[Path, Path]
) -> None:
    private, public = keys
    with pytest.raises(IntegrityError, match=r"model\.sig is missing"):
        fuse("verify", output, "--public-key", public)
    fuse("sign", output, "--key", private)
    assert "the signature is valid" in fuse("verify", output, "--public-key", public)
    (output / "config.json").write_text("{}")
    statement = read_statement(output)
    entry = next(entry for entry in statement["subject"] if entry["name"] == "config.json")
    entry["digest"]["sha256"] = hashlib.sha256(b"{}").hexdigest()
    write_statement(output, statement)
    assert "verified: " in fuse("verify", output)
    with pytest.raises(
        IntegrityError,
        match=r"signature of .* is invalid: changed files: config\.json, provenance\.json\n",
    ):
        fuse("verify", output, "--public-key", public)


@pytest.mark.filterwarnings("ignore")
def test_the_signature_of_a_repository_is_verified(
    fuse: Callable[..., str], output: Path, keys: tuple[Path, Path], hub: HubServer
) -> None:
    private, public = keys
    (output / "README.md").write_text("# Mine")
    fuse("sign", output, "--key", private)
    files = {path.name: path.read_bytes() for path in output.iterdir()}
    hub.add("us/merged", {**files, ".gitattributes": b""})
    assert "the signature is valid" in fuse("verify", "us/merged", "--public-key", public)
    hub.add("us/edited", {**files, "README.md": b"# Theirs"})
    with pytest.raises(IntegrityError, match=r"signature of .* is invalid.*README\.md"):
        fuse("verify", "us/edited", "--public-key", public)


@pytest.mark.filterwarnings("ignore")
def test_an_encrypted_key_needs_its_password(
    fuse: Callable[..., str], output: Path, keys: tuple[Path, Path]
) -> None:
    from cryptography.hazmat.primitives import serialization

    private, public = keys
    key: Any = serialization.load_pem_private_key(private.read_bytes(), None)
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"abc"),
        )
    )
    for arguments in ((), ("--password", "abd")):
        with pytest.raises(FusionError, match="cannot be signed with"):
            fuse("sign", output, "--key", private, *arguments)
    fuse("sign", output, "--key", private, "--password", "abc")
    assert "the signature is valid" in fuse("verify", output, "--public-key", public)


@pytest.mark.filterwarnings("ignore")
def test_keys_of_another_kind_are_refused(
    fuse: Callable[..., str], output: Path, keys: tuple[Path, Path]
) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    public = serialization.PublicFormat.SubjectPublicKeyInfo
    fuse("sign", output, "--key", keys[0])
    for key in (ed25519.Ed25519PrivateKey.generate(), rsa.generate_private_key(65537, 2048)):
        private = serialization.PrivateFormat.PKCS8
        keys[0].write_bytes(key.private_bytes(pem, private, plain))
        keys[1].write_bytes(key.public_key().public_bytes(pem, public))
        with pytest.raises(FusionError, match=r"signed with .*: it is no elliptic-curve key"):
            fuse("sign", output, "--key", keys[0])
        with pytest.raises(FusionError, match=r"be read: it is no elliptic-curve key"):
            fuse("verify", output, "--public-key", keys[1])


@pytest.mark.filterwarnings("ignore")
def test_bad_keys_and_outputs_are_refused(
    fuse: Callable[..., str], output: Path, keys: tuple[Path, Path]
) -> None:
    private, public = keys
    with pytest.raises(FusionError, match="cannot be signed with"):
        fuse("sign", output, "--key", public)
    fuse("sign", output, "--key", private)
    with pytest.raises(FusionError, match="cannot be read"):
        fuse("verify", output, "--public-key", output / "config.json")
    (output / "config.json").unlink()
    with pytest.raises(IntegrityError, match=r"config\.json \(missing\)"):
        fuse("sign", output, "--key", private)
