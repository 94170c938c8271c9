"""The version of this installation, as messages and commands say it."""

from importlib.metadata import version

VERSION = version("federated-maintenance")
