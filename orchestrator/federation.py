"""The sites file: who belongs to the federation, and how each site is reached."""

import re
from pathlib import Path
from typing import Annotated, Any, Final, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, EmailStr, Field, SecretStr, model_validator

from core.configuration import parse, read_yaml
from core.exceptions import ConfigurationError
from orchestrator.section import Section

SITE_ID: Final = r"^[a-z0-9][a-z0-9-]{0,62}$"


def _site_url(url: str) -> str:
    if "@" in url:
        message = "a URL holds no account; give it as `email` and `password`"
        raise ValueError(message)
    try:
        parts = urlsplit(url)
        fits = parts.scheme in {"http", "https", "memory"} and parts.hostname and parts.port != 0
    except ValueError:  # a port that is none
        fits = False
    if not fits or parts.path not in {"", "/"} or re.search(r"[\s?#]", url):
        message = f"{url!r} is no address of a site; write http://host:port or https://host:port"
        raise ValueError(message)
    return url


class Member(Section):
    """A site that is only known by its name: one that is simulated has no address.

    Attributes:
        site_id: Its name.
        tags: Words by which an experiment can choose its sites.
    """

    site_id: str = Field(pattern=SITE_ID)
    tags: tuple[str, ...] = ()


class SiteAddress(Member):
    """How to reach one site, and as whom.

    Attributes:
        site_id: The name that the site itself must give.
        url: Of its PySyft server, such as `http://127.0.0.1:8081`.
        backup_urls: Other ways to the same site, tried in this order where `url` is not reached.
        password: Given by a variable, as `${FACTORY_1_PASSWORD}`.
        password_file: Or read from a file; a relative path starts at the sites file.
        ca_file: The certificate authority that vouches for an https site, a PEM file; a relative
            path starts at the sites file. Without it, that of REQUESTS_CA_BUNDLE or SSL_CERT_FILE,
            and else the usual ones of the web.
        tags: Words by which an experiment can choose its sites.
    """

    url: Annotated[str, AfterValidator(_site_url)]
    backup_urls: tuple[Annotated[str, AfterValidator(_site_url)], ...] = ()
    email: EmailStr
    password: SecretStr | None = None
    password_file: Path | None = None
    ca_file: Path | None = None

    @model_validator(mode="after")
    def _one_password(self) -> Self:
        if (self.password is None) == (self.password_file is None):
            message = "give either `password` (as ${VARIABLE}) or `password_file`"
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _authority_of_https(self) -> Self:
        plain = [url for url in (self.url, *self.backup_urls) if urlsplit(url).scheme != "https"]
        if self.ca_file is not None and plain:
            message = f"a `ca_file` is for https; the url is {plain[0]}"
            raise ValueError(message)
        return self

    def credentials(self) -> dict[str, str]:
        """Give what `connect_to_datasite` takes.

        Raises:
            ConfigurationError: The password's file cannot be read.
        """
        if self.password is not None:
            password = self.password.get_secret_value()
        else:
            try:
                password = Path(str(self.password_file)).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as exc:
                reason = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8 text"
                raise ConfigurationError(
                    f"{self.site_id}: password_file {self.password_file} cannot be read: {reason}"
                ) from exc
        named = {"site_id": self.site_id, "email": self.email, "password": password}
        return named if self.ca_file is None else {**named, "ca_file": str(self.ca_file)}


_Named = TypeVar("_Named", bound=Member)


def _different(sites: tuple[_Named, ...]) -> tuple[_Named, ...]:
    names = [site.site_id for site in sites]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        message = f"named more than once: {', '.join(repeated)}"
        raise ValueError(message)
    return sites


class Federation(Section):
    """The sites file: who belongs to the federation."""

    sites: Annotated[tuple[SiteAddress, ...], Field(min_length=1), AfterValidator(_different)]


class Members(Section):
    """A sites file of which names and tags are read."""

    sites: Annotated[tuple[Member, ...], Field(min_length=1), AfterValidator(_different)]


def load_federation(path: Path) -> Federation:
    """Read a sites file.

    Raises:
        ConfigurationError: With every mistake and its place in the file.
    """
    federation = parse(_read(path), Federation, source=str(path))
    base = path.resolve().parent
    return Federation(sites=tuple(_starting_at(base, site) for site in federation.sites))


def load_members(path: Path) -> tuple[Member, ...]:
    """Read the names and tags of a sites file; addresses and accounts may be anything.

    Raises:
        ConfigurationError: With every mistake and its place in the file.
    """
    raw = _read(path)
    if isinstance(raw, dict) and isinstance(raw.get("sites"), list):
        raw = {**raw, "sites": [_without_account(site) for site in raw["sites"]]}
    return parse(raw, Members, source=str(path)).sites


def _without_account(site: Any) -> Any:  # noqa: ANN401 - a YAML value, judged by `Members`
    if not isinstance(site, dict):
        return site
    return {name: value for name, value in site.items() if name in Member.model_fields}


def _read(path: Path) -> Any:  # noqa: ANN401 - a YAML value, judged by who asks
    """Give the content of what should be a sites file.

    Raises:
        ConfigurationError: It cannot be read, or it is an experiment.
    """
    raw = read_yaml(path)
    if isinstance(raw, dict) and {"rounds", "dataset"} <= raw.keys():
        advice = (
            "its sites are simulated, and need no log-in"
            if raw.get("transport") == "memory"
            else "give the sites file that it names"
        )
        raise ConfigurationError(f"{path}: is an experiment and no sites file; {advice}")
    return raw


def _starting_at(base: Path, site: SiteAddress) -> SiteAddress:
    files = {"password_file": site.password_file, "ca_file": site.ca_file}
    found = {name: base / file for name, file in files.items() if file is not None}
    return site.model_copy(update=found)
