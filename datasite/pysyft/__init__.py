"""The site's PySyft edge: the only modules of a site that import PySyft.

    opening     the database, the identity, the settings
    hardened    whose call it is, which calls are served, what answers them
    accounts    who may log in, and as what
    datasets    what PySyft's clients are shown
    edge        `PySyftSite`: all of it behind our own types

`datasite.server` imports them, and nothing else does.
"""
