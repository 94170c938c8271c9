"""Secure aggregation: a sum of updates of which nobody learns a summand.

Each site adds masks to its update before it leaves: one for each other site, which that site
subtracts, and one of its own. In the sum of all sites the first kind cancels. The second kind keeps
an update hidden that comes late, after its site was counted as lost and the masks that it shares
with the others were made known. The seeds of both kinds are shared out among the sites, so that any
`threshold` of them can take away what a lost site left in the sum.

    context   what one session is bound to, and the keys that come of it
    shares    seeds divided by Shamir's scheme, each share sealed for one site
    masks     vectors of random numbers, from a seed
    addends   an update as whole numbers, and a sum of them as an update again

    Source: Bonawitz et al., CCS 2017, https://doi.org/10.1145/3133956.3133982, figure 4.
"""
