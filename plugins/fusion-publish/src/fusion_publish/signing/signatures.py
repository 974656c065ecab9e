"""Sign a model directory, and verify its signature, with the package `model-signing`.

The signature is a detached Sigstore bundle over the SHA-256 of every file (OpenSSF Model Signing
1.0). `model_signing verify` of that package accepts it, too.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from fusion_core.commands import import_optional
from fusion_core.errors import FusionError, IntegrityError

if TYPE_CHECKING:
    from pathlib import Path

    from fusion_publish.verification.locating import Located

SIGNATURE = "model.sig"
_INSTALL = "fusion-publish[sign]"
#: Folders that the hub's client adds.
_UNSIGNED = (".cache",)
#: The errors of the package for keys that it cannot use.
_UNUSABLE = (OSError, ValueError, TypeError, AttributeError)
#: A file in the text of the package's error, whose quotes may be escaped.
_CHANGED = re.compile(r"Hash mismatch for \\?'([^'\\]+)")


def sign_directory(directory: Path, private_key: Path, password: str | None) -> Path:
    """Sign every file of a directory with an elliptic-curve key (PEM).

    Returns the path of the signature in the directory, which replaces an older one. Raises
    `FusionError` for a key that cannot be used, or a missing package.
    """
    signing = _import("signing", "fuse sign")
    path = directory / SIGNATURE
    config = signing.Config().set_hashing_config(_hashing(directory, path))
    try:
        # The package hands the password to `cryptography`, which takes bytes.
        secret: Any = None if password is None else password.encode()
        config.use_elliptic_key_signer(private_key=private_key, password=secret)
        config.sign(directory, path)
    except _UNUSABLE as error:
        raise FusionError(
            f"{directory} cannot be signed with {private_key}: {_reason(error)}",
            hint="Make a key: openssl ecparam -name prime256v1 -genkey -noout -out key.pem",
        ) from error
    return path


def verify_signature(located: Located, public_key: Path, signature: Path | None) -> None:
    """Verify the signature of a directory with an elliptic-curve public key (PEM).

    Raises `IntegrityError` for a missing or invalid signature, and for files that differ from it.
    """
    verifying = _import("verifying", "the verification of a signature")
    path = located.directory / SIGNATURE if signature is None else signature
    if not path.is_file():
        raise IntegrityError(
            f"{located.subject} has no signature: {path.name} is missing",
            hint="Sign it with fuse sign, or name the signature with --signature.",
        )
    config = verifying.Config().set_hashing_config(_hashing(located.directory, path))
    try:
        config.use_elliptic_key_verifier(public_key=public_key)
    except _UNUSABLE as error:
        raise FusionError(
            f"the key {public_key} cannot be read: {_reason(error)}",
            hint="Name a public key in PEM: openssl ec -in key.pem -pubout -out key.pub",
        ) from error
    try:
        config.verify(located.directory, path)
    except Exception as error:  # whatever the package raises for a damaged bundle
        changed = _CHANGED.findall(str(error))  # whose digests the text shows as objects of Python
        reason = f"changed files: {', '.join(changed)}" if changed else str(error)
        raise IntegrityError(
            f"the signature of {located.subject} is invalid: {reason or type(error).__name__}",
            hint="The files, the signature or the key differ from those of the signer.",
        ) from error


def _reason(error: Exception) -> str:
    """Say why a key cannot be used; the package asks any key for its curve."""
    return "it is no elliptic-curve key" if isinstance(error, AttributeError) else str(error)


def _import(module: str, needed_by: str) -> Any:  # noqa: ANN401 - a module of an optional package
    import_optional("OpenSSL", needed_by, _INSTALL)  # which model-signing 1.1 imports, undeclared
    import_optional("model_signing", needed_by, _INSTALL)
    return import_optional(f"model_signing.{module}", needed_by, _INSTALL)


def _hashing(directory: Path, signature: Path) -> Any:  # noqa: ANN401
    hashing = _import("hashing", "a signature")
    ignored = [*(directory / name for name in _UNSIGNED), signature.absolute()]
    inside = [
        path.relative_to(directory.absolute())
        for path in (path.absolute() for path in ignored)
        if path.is_relative_to(directory.absolute())
    ]
    config = hashing.Config().use_file_serialization(allow_symlinks=True)
    return config.set_ignored_paths(paths=inside).set_allow_symlinks(True)
