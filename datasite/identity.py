"""Who a site is and which credentials it accepts."""

import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from nacl.signing import SigningKey
from pydantic import validate_email
from pydantic_core import PydanticCustomError

from core.exceptions import ConfigurationError
from datasite.modes import private_directory

PASSWORD_LENGTH: Final = 12
_BCRYPT_BYTES: Final = 72
_DEFAULT_PASSWORDS: Final = frozenset({"changethis", "password1234", "changethis123"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The name and key by which PySyft knows a site; a site that loses them is another site.

    Attributes:
        uid: 32 hexadecimal digits of a version-4 UUID. PySyft's clients force the version bits of
            any other value, and then address a site that does not exist.
        private_key: The Ed25519 seed, 64 hexadecimal digits. It signs every answer and is also
            the root account's key, and signs the site's keys in secure aggregation.
    """

    uid: str
    private_key: str

    @property
    def public_key(self) -> str:
        """By which others know that the site has signed something: 64 hexadecimal digits."""
        return bytes(self._signer.verify_key).hex()

    def sign(self, message: bytes) -> bytes:
        """Give the signature of a message, 64 bytes; what it is about must stand in the message."""
        return bytes(self._signer.sign(message).signature)

    @property
    def _signer(self) -> SigningKey:
        return SigningKey(bytes.fromhex(self.private_key))

    def __repr__(self) -> str:
        """Show the uid and never the key."""
        return f"Identity(uid={self.uid!r})"

    @classmethod
    def open(cls, state: Path) -> Self:
        """Read the identity kept under `state`, or make one there on first use.

        `state` is made as a directory that only its owner enters, the file as one that only its
        owner reads. The file appears whole or not at all.

        Raises:
            ConfigurationError: The file cannot be read as an identity, or others may enter `state`.
        """
        private_directory(state)
        path = state / "identity.json"
        if not path.exists():
            made = cls(uid=uuid.uuid4().hex, private_key=bytes(SigningKey.generate()).hex())
            _write_private(path, json.dumps({"uid": made.uid, "private_key": made.private_key}))
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            identity = cls(uid=kept["uid"], private_key=kept["private_key"])
            valid = uuid.UUID(identity.uid).version == 4  # noqa: PLR2004  the version PySyft needs
            SigningKey(bytes.fromhex(identity.private_key))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
            raise _unreadable(path) from exc
        if not valid:
            raise _unreadable(path)
        return identity


def require_email(email: str) -> str:
    """Give `email` in the form PySyft stores.

    Raises:
        ConfigurationError: PySyft would not accept it; it also refuses reserved domains such as
            `.local`, and would otherwise end with a traceback while the site starts.
    """
    try:
        return validate_email(email)[1]
    except PydanticCustomError as exc:
        message = (
            f"{email!r} is no e-mail address that PySyft accepts ({exc.message()}); use one with "
            "an ordinary domain, such as operator@factory-1.example.com"
        )
        raise ConfigurationError(message) from exc


def require_strong_password(password: str, *, email: str) -> None:
    """Refuse a password that others would guess, or that would be cut short.

    Raises:
        ConfigurationError: It is a known default, the e-mail address, shorter than 12 characters,
            or longer than the 72 bytes of which bcrypt takes notice. The message does not show it.
    """
    if not password or password.lower() in _DEFAULT_PASSWORDS:
        reason = "is empty or a known default"
    elif password.lower() == email.lower():
        reason = "is the e-mail address"
    elif len(password) < PASSWORD_LENGTH:
        reason = f"has {len(password)} characters"
    elif len(password.encode()) > _BCRYPT_BYTES or "\0" in password:
        reason = "is longer than 72 bytes, or has a NUL in it"
    else:
        return
    message = f"the password of {email} {reason}; choose {PASSWORD_LENGTH} to 72 characters"
    raise ConfigurationError(message)


def _write_private(path: Path, text: str) -> None:
    draft = path.with_suffix(".draft")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _unreadable(path: Path) -> ConfigurationError:
    return ConfigurationError(
        f"{path} holds no site identity; restore it from a backup, or remove it to start as a new "
        "site, which no open plan or session knows"
    )
