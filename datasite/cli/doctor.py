"""`datasite doctor`: whether the site can do its work."""

from datasite.cli.options import AsJson, ConfigFile


def doctor(config: ConfigFile, as_json: AsJson = False) -> None:
    """Check the site and its machine, and say what to do about each failure; exit code 0 or 1.

    It changes nothing, whether the site runs or not. A warning does not fail.

    Example: datasite doctor --config site.yaml
    """
    from core.checkup import as_rows
    from core.commands import echo_findings
    from datasite.doctor import examine

    echo_findings(as_rows(examine(config)), as_json=as_json)
