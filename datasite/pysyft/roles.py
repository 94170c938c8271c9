"""What PySyft's roles mean here."""

from typing import Final

from syft.service.user.user_roles import ServiceRole

from datasite.caller import Role

ROLES: Final = {
    ServiceRole.ADMIN: Role.OPERATOR,
    ServiceRole.DATA_SCIENTIST: Role.RESEARCHER,
}
"""An account with another of PySyft's roles (guest, data owner, none) is disabled here."""

PYSYFT_ROLES: Final = {role: pysyft_role for pysyft_role, role in ROLES.items()}
