"""A SIMULATION of an AMD SEV-SNP platform in software, for the demo, tests and load.

Nothing here protects anything: whoever has the simulator's keys can sign any report. A server trusts its
root only when `KMS_DEVELOPMENT_ROOTS` names it, and then says so in everything it answers. No module of the
project may import this package but the command line and the tests.
"""
