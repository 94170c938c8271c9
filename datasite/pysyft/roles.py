"""What PySyft's roles mean here."""

from typing import Final

from syft.service.user.user_roles import ServiceRole

from datasite.caller import Role

ROLES: Final = {
    ServiceRole.ADMIN: Role.OPERATOR,
    ServiceRole.DATA_OWNER: Role.AUDITOR,
    ServiceRole.DATA_SCIENTIST: Role.RESEARCHER,
}
"""An account with another of PySyft's roles (guest, none) is disabled here.

PySyft lets a data owner read every object; what an auditor may call (`datasite.doors`) reads none.
A guest would be less, but is what an operator may have made of an account to shut it out.
"""

PYSYFT_ROLES: Final = {role: pysyft_role for pysyft_role, role in ROLES.items()}

DISABLED: Final = ServiceRole.NONE
